// A training rank's way to save and resume, for Python.
#include "esker/checkpointer.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "checkpoint.h"
#include "choices.h"
#include "native_object.h"
#include "save_handle.h"
#include "seconds.h"
#include "status.h"
#include "tensor_box.h"

namespace py = pybind11;

namespace esker::python {
namespace {

// Byte items to save, and the Python objects that hold their bytes: referred to, so that nobody frees them
// meanwhile.
struct HeldItems {
  std::vector<SourceItem> items;
  std::vector<py::bytes> holders;
};

HeldItems ToItems(const py::sequence& pairs) {
  HeldItems held;
  for (const py::handle pair : pairs) {
    if (!py::isinstance<py::tuple>(pair) || py::len(pair) != 2 ||
        !py::isinstance<py::str>(pair[py::int_(0)]) || !py::isinstance<py::bytes>(pair[py::int_(1)])) {
      throw py::type_error(StrCat("item number ", held.items.size(),
                                  ": expected a tuple (name: str, content: bytes), found ",
                                  std::string(py::repr(pair))));
    }
    held.holders.push_back(py::reinterpret_borrow<py::bytes>(pair[py::int_(1)]));
    held.items.push_back({py::cast<std::string>(pair[py::int_(0)]), std::string_view(held.holders.back())});
  }
  return held;
}

class BoundCheckpointer {
 public:
  explicit BoundCheckpointer(std::unique_ptr<Checkpointer> checkpointer)
      : native_("Checkpointer", std::move(checkpointer)) {}

  BoundSave Save(uint64_t step, const py::sequence& tensors, const py::sequence& items) {
    Checkpointer& checkpointer = native_.get();
    State state;
    state.tensors = ToSourceTensors(tensors);
    HeldItems held = ToItems(items);
    state.items = std::move(held.items);
    // libesker would wait too, but deaf to signals.
    if (last_save_.has_value() && checkpointer.options().in_flight == InFlightPolicy::kWait) {
      BoundSave(*last_save_).AwaitEnd(std::nullopt);
    }
    last_save_.emplace(ValueOrRaise(WithoutGil([&] { return checkpointer.Save(step, state); })));
    return *last_save_;
  }

  void Abort(uint64_t step, const std::string& reason) {
    Checkpointer& checkpointer = native_.get();
    RaiseIfError(WithoutGil([&] { return checkpointer.Abort(step, reason); }));
  }

  std::optional<uint64_t> LatestStep() {
    Checkpointer& checkpointer = native_.get();
    return ValueOrRaise(WithoutGil([&] { return checkpointer.LatestStep(); }));
  }

  std::unique_ptr<BoundCheckpoint> OpenCheckpoint(std::optional<uint64_t> step) {
    Checkpointer& checkpointer = native_.get();
    return std::make_unique<BoundCheckpoint>(
        "Checkpoint", ValueOrRaise(WithoutGil([&] { return checkpointer.OpenCheckpoint(step); })));
  }

  std::vector<CheckpointInfo> List() {
    Checkpointer& checkpointer = native_.get();
    return ValueOrRaise(WithoutGil([&] { return checkpointer.List(); }));
  }

  uint64_t attempt() const { return native_.get().attempt(); }

 private:
  NativeObject<Checkpointer> native_;
  std::optional<BoundSave> last_save_;  // guarded by the GIL
};

std::unique_ptr<BoundCheckpointer> Open(const std::string& server, const std::string& run, uint32_t rank,
                                        uint32_t world_size, const std::string& incarnation,
                                        const std::string& in_flight, const std::string& compression,
                                        const std::string& transport, int threads, uint64_t pipeline_bytes,
                                        uint64_t staging_bytes, bool keep_staging, uint64_t chunk_bytes,
                                        double connect_timeout, double save_timeout) {
  CheckpointerOptions options;
  options.server = server;
  options.run = run;
  options.rank = rank;
  options.world_size = world_size;
  options.incarnation = incarnation;
  options.in_flight = Choose<InFlightPolicy>(
      "in_flight", in_flight,
      {{"wait", InFlightPolicy::kWait}, {"skip", InFlightPolicy::kSkip}, {"fail", InFlightPolicy::kFail}});
  options.compression = Choose<Compression>("compression", compression,
                                            {{"none", Compression::kNone},
                                             {"zstd", Compression::kZstd},
                                             {"planes", Compression::kPlanes},
                                             {"auto", Compression::kAuto},
                                             {"delta", Compression::kDelta}});
  options.transport = ToTransport(transport);
  options.threads = threads;
  options.pipeline_bytes = pipeline_bytes;
  options.staging_bytes = staging_bytes;
  options.keep_staging = keep_staging;
  options.chunk_bytes = chunk_bytes;
  options.connect_timeout_ms = ToMilliseconds(connect_timeout, "connect_timeout");
  options.save_timeout_ms = ToMilliseconds(save_timeout, "save_timeout");
  RequireHomeOfLibrary();
  return std::make_unique<BoundCheckpointer>(
      ValueOrRaise(WithoutGil([&] { return Checkpointer::Open(options); })));
}

}  // namespace

void BindCheckpointer(py::module_& module) {
  const CheckpointerOptions defaults;
  py::class_<BoundCheckpointer>(module, "Checkpointer")
      .def(py::init(&Open), py::arg("server"), py::arg("run"), py::arg("rank"), py::arg("world_size"),
           py::kw_only(), py::arg("incarnation") = "", py::arg("in_flight") = "wait",
           py::arg("compression") = "none", py::arg("transport") = "auto",
           py::arg("threads") = defaults.threads, py::arg("pipeline_bytes") = defaults.pipeline_bytes,
           py::arg("staging_bytes") = defaults.staging_bytes, py::arg("keep_staging") = defaults.keep_staging,
           py::arg("chunk_bytes") = defaults.chunk_bytes,
           py::arg("connect_timeout") = static_cast<double>(defaults.connect_timeout_ms) / 1000,
           py::arg("save_timeout") = static_cast<double>(defaults.save_timeout_ms) / 1000)
      .def("save", &BoundCheckpointer::Save, py::arg("step"), py::arg("tensors"), py::arg("items"))
      .def("abort", &BoundCheckpointer::Abort, py::arg("step"), py::arg("reason"))
      .def("latest_step", &BoundCheckpointer::LatestStep)
      .def("open_checkpoint", &BoundCheckpointer::OpenCheckpoint, py::arg("step") = py::none())
      .def("list", &BoundCheckpointer::List)
      .def_property_readonly("attempt", &BoundCheckpointer::attempt);
}

}  // namespace esker::python
