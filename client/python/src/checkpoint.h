// One committed checkpoint, open for reading, for Python.
#pragma once

#include "esker/reader.h"
#include "native_object.h"

namespace esker::python {

using BoundCheckpoint = NativeObject<CheckpointReader>;

}  // namespace esker::python
