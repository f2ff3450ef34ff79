#include "tools/records.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "format/base/clock.h"
#include "format/base/duration.h"

namespace esker {

namespace {

// Of the raw bytes. The Python package's default for its warning (stale_fraction).
constexpr double kStaleFraction = 0.9;

double UnchangedFraction(const v1::CheckpointRecord& record) {
  if (record.raw_bytes() == 0) return 0;
  return static_cast<double>(record.unchanged_bytes()) / static_cast<double>(record.raw_bytes());
}

const char* StateName(v1::CheckpointRecord::State state) {
  switch (state) {
    case v1::CheckpointRecord::COMMITTED:
      return "committed";
    case v1::CheckpointRecord::DELETING:
      return "deleting";
    default:
      return "unknown";
  }
}

}  // namespace

bool IsStale(const v1::CheckpointRecord& record) { return UnchangedFraction(record) >= kStaleFraction; }

std::string StateText(const v1::CheckpointRecord& record) {
  const std::string name = StateName(record.state());
  if (!IsStale(record)) return name;
  return absl::StrFormat("%s, stale: %.0f%% unchanged", name, 100 * UnchangedFraction(record));
}

Json CheckpointJson(const v1::CheckpointRecord& record) {
  return {{"run", record.run()},
          {"step", record.step()},
          {"state", StateName(record.state())},
          {"attempt", record.attempt()},
          {"ranks", record.world_size()},
          {"begun_unix_ms", record.begun_unix_ms()},
          {"committed_unix_ms", record.committed_unix_ms()},
          {"raw_bytes", record.raw_bytes()},
          {"stored_bytes", record.stored_bytes()},
          {"new_stored_bytes", record.new_stored_bytes()},
          {"unchanged_bytes", record.unchanged_bytes()},
          {"stale", IsStale(record)},
          {"pinned", record.pinned()},
          {"pin_note", record.pin_note()}};
}

Json SaveJson(const v1::SaveStatusEntry& save) {
  const v1::SaveRecord& record = save.record();
  return {{"run", record.run()},
          {"step", record.step()},
          {"state", record.state() == v1::SaveRecord::SAVING ? "saving" : "aborted"},
          {"attempt", record.attempt()},
          {"ranks", record.world_size()},
          {"begun_unix_ms", record.begun_unix_ms()},
          {"reported_ranks", save.reported()},
          {"missing_ranks", save.missing_ranks()},
          {"reason", record.reason()}};
}

bool HasRules(const v1::RetentionPolicy& policy) {
  return policy.keep_last() > 0 || policy.keep_every() > 0 || policy.keep_within_ms() > 0;
}

Json RetentionJson(const v1::RetentionPolicy& policy) {
  if (!HasRules(policy)) return nullptr;
  return {{"keep_last", policy.keep_last()},
          {"keep_every", policy.keep_every()},
          {"keep_within_ms", policy.keep_within_ms()}};
}

std::string RetentionText(const v1::RetentionPolicy& policy) {
  std::vector<std::string> rules;
  if (policy.keep_last() > 0) rules.push_back(absl::StrCat("last ", policy.keep_last()));
  if (policy.keep_every() > 0) rules.push_back(absl::StrCat("every ", policy.keep_every(), " steps"));
  if (policy.keep_within_ms() > 0) {
    const std::chrono::milliseconds within(static_cast<int64_t>(policy.keep_within_ms()));
    rules.push_back(absl::StrCat("within ", FormatDuration(within)));
  }
  return rules.empty() ? "-" : absl::StrJoin(rules, ", ");
}

Json GarbageJson(const v1::GarbageReport& report) {
  return {{"parts_removed", report.parts_removed()},
          {"chunks_removed", report.chunks_removed()},
          {"chunk_bytes_removed", report.chunk_bytes_removed()},
          {"disk_bytes_freed", report.disk_bytes_freed()},
          {"segments_recycled", report.segments_recycled()},
          {"recycled_bytes", report.recycled_bytes()}};
}

std::string TimeAndAge(int64_t unix_ms) {
  if (unix_ms == 0) return "-";
  return absl::StrCat(HumanTime(unix_ms), " (", HumanDuration(SystemClock()->UnixMillis() - unix_ms),
                      " ago)");
}

std::string NameOf(const v1::CheckpointRecord& record) {
  return absl::StrCat(record.run(), "@", record.step());
}

}  // namespace esker
