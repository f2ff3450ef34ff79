// The catalog's records as the commands show them.
#pragma once

#include <string>
#include <string_view>

#include "format/proto/catalog.pb.h"
#include "format/proto/service.pb.h"
#include "tools/output.h"

namespace esker {

Json CheckpointJson(const v1::CheckpointRecord& record);
Json SaveJson(const v1::SaveStatusEntry& save);
// null where no rule is set.
Json RetentionJson(const v1::RetentionPolicy& policy);
Json GarbageJson(const v1::GarbageReport& report);

// "last 3, every 1000 steps, within 7d"; "-" where no rule is set.
std::string RetentionText(const v1::RetentionPolicy& policy);
bool HasRules(const v1::RetentionPolicy& policy);

// "committed", "committed, stale: 98% unchanged", "deleting".
std::string StateText(const v1::CheckpointRecord& record);
// Whether most of it is what the save before had too: a copy was saved, perhaps, that training no longer
// changes.
bool IsStale(const v1::CheckpointRecord& record);
// "2031-04-05 13:14:15 (2 h 3 min ago)".
std::string TimeAndAge(int64_t unix_ms);
// "llama@1000".
std::string NameOf(const v1::CheckpointRecord& record);

}  // namespace esker
