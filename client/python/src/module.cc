// The module esker._core: libesker for Python. Its interface, with types, is esker/_core.pyi.
#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  using namespace esker::python;
  module.doc() =
      "libesker: saves and restores sharded state. The Python API is the package `esker`, over this.";
  module.attr("__version__") = ESKER_VERSION;
  BindError(module);
  BindTensorBox(module);
  BindInfos(module);
  BindSaveHandle(module);
  BindCheckpoint(module);
  BindReader(module);
  BindCheckpointer(module);
}
