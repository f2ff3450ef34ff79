// Esker's public C++ API: save and restore a training job's sharded state. Everything a user includes is in
// this folder.
//
//   auto checkpointer = esker::Checkpointer::Open({.server = "127.0.0.1:7070", .run = "gpt"});
//   auto handle = (*checkpointer)->Save(step, state);              // returns after the snapshot copy
//   auto restored = (*checkpointer)->Restore(std::nullopt, want);  // the latest, into your memory
#pragma once

#include "esker/checkpointer.h"
#include "esker/reader.h"
#include "esker/state.h"
