#include "tests/chaos/run_worker.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "format/base/status.h"

namespace esker::testing {
namespace {

constexpr uint64_t kRowBytes = 1024;
constexpr uint64_t kKeepLast = 6;

TensorBox WholeRows(const std::string& name, uint64_t rows) {
  return WholeTensor(name, ElementType::kF64, {rows, kRowBytes / 8});
}

JobState StateOf(const CheckpointContent& content) {
  const std::vector<GlobalTensor> own = {{"own", ElementType::kF64, {content.own_rows, kRowBytes / 8}}};
  const std::vector<GlobalTensor> frozen = {
      {"frozen", ElementType::kF64, {content.frozen_rows, kRowBytes / 8}}};
  JobState state;
  for (uint32_t rank = 0; rank < content.ranks; ++rank) {
    RankState& mine = state.emplace_back();
    for (const TensorBox& box : RowShards(own, rank, content.ranks)) mine.AddTensor(box, content.own_seed);
    for (const TensorBox& box : RowShards(frozen, rank, content.ranks))
      mine.AddTensor(box, content.frozen_seed);
    if (rank == 0) mine.AddItem("content", content.ToText());
  }
  return state;
}

// What a call may say when the server was killed under it.
bool IsAway(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

std::string CheckpointContent::ToText() const {
  return absl::StrCat(own_seed, " ", own_rows, " ", frozen_seed, " ", frozen_rows, " ", ranks);
}

uint64_t CheckpointContent::bytes() const { return (own_rows + frozen_rows) * kRowBytes; }

RunWorker::RunWorker(std::string server, std::string run, uint64_t seed)
    : server_(std::move(server)),
      run_(std::move(run)),
      random_(seed),
      client_(std::make_unique<RawClient>(server_)) {}

void RunWorker::Violation(const std::string& what) { violations_.push_back(absl::StrCat(run_, ": ", what)); }

bool RunWorker::IsOkOrAway(const absl::Status& status, const std::string& what) {
  if (!status.ok() && !IsAway(status)) Violation(absl::StrCat(what, ": ", status.ToString()));
  return status.ok();
}

void RunWorker::Operate() {
  const uint64_t draw = random_() % 100;
  if (draw < 55 || model_.empty()) {
    Save();
  } else if (draw < 70) {
    RestoreSome();
  } else if (draw < 78) {
    Delete();
  } else if (draw < 82) {
    TogglePin();
  } else if (draw < 92) {
    Collect();
  } else {
    CollectByPolicy();
  }
}

// A new start of the job, with another number of ranks.
bool RunWorker::OpenJob() {
  job_.reset();
  CheckpointerOptions options = JobOptions(server_, run_, absl::StrCat("incarnation-", ++incarnations_));
  options.threads = 1;
  options.chunk_bytes = 256 << 10;
  impatient_ = random_() % 3 == 0;
  options.save_timeout_ms = impatient_ ? 1 + random_() % 30 : 60'000;
  absl::StatusOr<std::unique_ptr<Job>> job = Job::Open(options, 1 + static_cast<uint32_t>(random_() % 3));
  if (!IsOkOrAway(job.status(), "opening the run")) return false;
  job_ = *std::move(job);
  fence_needed_ = false;
  return true;
}

void RunWorker::Save() {
  if ((fence_needed_ || job_ == nullptr || random_() % 12 == 0) && !OpenJob()) return;
  const uint64_t attempt = job_->rank(0).attempt();
  uint64_t step = next_step_;
  if (random_() % 8 == 0 && !model_.empty()) step = RandomEntry()->first;  // again, replacing what is there
  if (step == next_step_) {
    ++next_step_;
  } else if (model_[step].attempt >= attempt) {
    return;  // an attempt saves a step once
  }

  CheckpointContent content;
  content.own_seed = random_();
  content.own_rows = random_() % 8 == 0 ? random_() % 4096 : 10 + random_() % 600;
  content.frozen_seed = 1 + random_() % 3;
  content.frozen_rows = random_() % 8 == 0 ? 4096 : 700;
  content.ranks = job_->ranks();
  Expectation& expected = model_[step];
  expected.may_be_absent = expected.may_be_absent || expected.possible.empty();
  expected.attempt = attempt;

  const absl::Status saved = job_->Save(step, StateOf(content));
  if (saved.ok()) {
    ++counts_.saves_acknowledged;
    expected.possible = {content};
    expected.may_be_absent = false;
    return;
  }
  // A patient job lives through every restart of the server; an impatient one may give up.
  if (!impatient_ || !(IsAway(saved) || absl::IsAborted(saved))) {
    Violation(absl::StrCat("save of step ", step, " failed: ", saved.ToString()));
  }
  ++counts_.saves_failed;
  expected.possible.push_back(content);
  fence_needed_ = true;
}

RunWorker::Model::iterator RunWorker::RandomEntry() {
  return std::next(model_.begin(), static_cast<ptrdiff_t>(random_() % model_.size()));
}

void RunWorker::RestoreSome() {
  const auto entry = RandomEntry();
  const absl::Status restored = RestoreAndCompare(entry->first, entry->second);
  if (absl::IsNotFound(restored) && entry->second.may_be_absent) return;
  IsOkOrAway(restored, absl::StrCat("restore of step ", entry->first));
}

void RunWorker::Delete() {
  const auto entry = RandomEntry();
  const absl::Status deleted = client_->Delete(run_, entry->first);
  if (absl::IsNotFound(deleted) && entry->second.may_be_absent) return;
  if (absl::IsFailedPrecondition(deleted) && (entry->second.pinned || !entry->second.pin_is_known)) return;
  if (!IsOkOrAway(deleted, absl::StrCat("deletion of step ", entry->first))) {
    entry->second.may_be_absent = true;
    return;
  }
  ++counts_.deletions;
  if (entry->second.pinned && entry->second.pin_is_known) {
    Violation(absl::StrCat("step ", entry->first, " was deleted although it is pinned"));
  }
  // A failed save of the step may still commit: then it comes back.
  if (fence_needed_) {
    entry->second.may_be_absent = true;
  } else {
    model_.erase(entry);
  }
}

void RunWorker::TogglePin() {
  const auto entry = RandomEntry();
  const bool pinned = !entry->second.pinned;
  const absl::Status done = client_->Pin(run_, entry->first, pinned);
  if (absl::IsNotFound(done) && entry->second.may_be_absent) return;
  entry->second.pin_is_known = IsOkOrAway(done, absl::StrCat("pinning step ", entry->first));
  if (done.ok()) entry->second.pinned = pinned;
}

void RunWorker::Collect() {
  const absl::StatusOr<v1::CollectGarbageResponse> collected = client_->CollectGarbage();
  if (!IsOkOrAway(collected.status(), "collecting garbage")) return;
  counts_.parts_collected += collected->report().parts_removed();
}

void RunWorker::CollectByPolicy() {
  v1::RetentionPolicy policy;
  policy.set_keep_last(kKeepLast);
  const absl::StatusOr<v1::CollectGarbageResponse> collected = client_->CollectGarbage(&policy, run_);
  if (!IsOkOrAway(collected.status(), "collecting garbage by a policy")) {
    for (auto& [step, expected] : model_)
      expected.may_be_absent |= !expected.pinned || !expected.pin_is_known;
    return;
  }
  counts_.parts_collected += collected->report().parts_removed();
  for (const v1::CheckpointRecord& record : collected->deleted()) {
    const auto entry = model_.find(record.step());
    if (entry == model_.end()) {
      Violation(
          absl::StrCat("the policy deleted step ", record.step(), ", which should not have been there"));
    } else if (entry->second.pinned && entry->second.pin_is_known) {
      Violation(absl::StrCat("the policy deleted step ", record.step(), " although it is pinned"));
    } else if (fence_needed_) {
      entry->second.may_be_absent = true;
    } else {
      model_.erase(entry);
    }
  }
}

void RunWorker::Verify(size_t samples) {
  client_ =
      std::make_unique<RawClient>(server_);  // the old one may not have noticed yet that its server died
  if (fence_needed_ && !OpenJob()) Violation("the run can't be opened, though the server is up");
  const absl::StatusOr<v1::ListCheckpointsResponse> listed = client_->List(run_, false);
  if (!listed.ok()) return Violation(absl::StrCat("listing: ", listed.status().ToString()));
  CheckListed(*listed);
  // Random ones, and all that is doubtful.
  std::vector<uint64_t> steps;
  for (const auto& [step, expected] : model_) steps.push_back(step);
  std::shuffle(steps.begin(), steps.end(), random_);
  for (size_t i = 0; i < steps.size(); ++i) {
    Expectation& expected = model_[steps[i]];
    if (i >= samples && expected.possible.size() == 1 && !expected.may_be_absent) continue;
    const absl::Status restored = RestoreAndCompare(steps[i], expected);
    if (!restored.ok())
      Violation(absl::StrCat("step ", steps[i], " does not restore: ", restored.ToString()));
  }
}

void RunWorker::CheckListed(const v1::ListCheckpointsResponse& listed) {
  std::map<uint64_t, const v1::CheckpointRecord*> records;
  for (const v1::CheckpointRecord& record : listed.checkpoints()) {
    records[record.step()] = &record;
    const auto entry = model_.find(record.step());
    if (entry == model_.end()) {
      Violation(absl::StrCat("step ", record.step(), " is listed, but was deleted or never committed"));
    } else if (entry->second.pin_is_known && entry->second.pinned != record.pinned()) {
      Violation(absl::StrCat("step ", record.step(), ": pinned is ", record.pinned(),
                             ", and not what was acknowledged"));
    } else {
      entry->second.pinned = record.pinned();
      entry->second.pin_is_known = true;
    }
  }
  for (auto entry = model_.begin(); entry != model_.end();) {
    if (records.count(entry->first) > 0) {
      ++entry;
      continue;
    }
    if (!entry->second.may_be_absent)
      Violation(absl::StrCat("step ", entry->first, " was acknowledged, but is not listed"));
    ++counts_.doubtful_absent;
    entry = model_.erase(entry);
  }
}

absl::Status RunWorker::RestoreAndCompare(uint64_t step, Expectation& expected) {
  ESKER_ASSIGN_OR_RETURN(const std::unique_ptr<Reader> reader,
                         Reader::Open({.server = server_, .threads = 1}));
  ESKER_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointReader> checkpoint,
                         reader->OpenCheckpoint(run_, step));
  ESKER_ASSIGN_OR_RETURN(const std::string text, checkpoint->ReadItem(0, "content"));
  for (const CheckpointContent& content : expected.possible) {
    if (content.ToText() != text) continue;
    if (checkpoint->info().world_size != content.ranks) return absl::DataLossError("another world size");
    ESKER_RETURN_IF_ERROR(CompareTensors(*checkpoint, content));
    // As long as an unfenced save may commit, nothing is settled.
    if (fence_needed_) return absl::OkStatus();
    if (expected.may_be_absent) ++counts_.doubtful_found;
    expected.possible = {CheckpointContent(content)};
    expected.may_be_absent = false;
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("it holds '", text, "', which is none of the ",
                                          expected.possible.size(), " possible states"));
}

absl::Status RunWorker::CompareTensors(CheckpointReader& checkpoint, const CheckpointContent& content) {
  RestoreTarget own({WholeRows("own", content.own_rows)}), frozen({WholeRows("frozen", content.frozen_rows)});
  RestoreRequest request;
  // A tensor without rows was saved by no rank.
  if (content.own_rows > 0) request.tensors = own.tensors();
  for (const TargetTensor& target : frozen.tensors()) request.tensors.push_back(target);
  ESKER_RETURN_IF_ERROR(checkpoint.Restore(request));
  const std::string difference =
      absl::StrCat(own.Difference(content.own_seed), frozen.Difference(content.frozen_seed));
  if (!difference.empty()) return absl::DataLossError(absl::StrCat("wrong bytes: ", difference));
  ++counts_.checkpoints_restored;
  counts_.bytes_restored += content.bytes();
  return absl::OkStatus();
}

void RunWorker::DeleteAll() {
  for (const auto& [step, expected] : model_) {
    absl::Status done = expected.pinned ? client_->Pin(run_, step, false) : absl::OkStatus();
    if (done.ok()) done = client_->Delete(run_, step);
    if (!done.ok()) Violation(absl::StrCat("deletion of step ", step, ": ", done.ToString()));
  }
  model_.clear();
}

}  // namespace esker::testing
