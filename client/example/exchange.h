// What the ranks of one incarnation share: activations, partial sums, and a barrier. Anonymous shared memory
// that the launcher maps before it forks, so nothing is left behind whoever is killed.
#pragma once

#include <atomic>
#include <cstdint>

namespace esker::example {

inline constexpr uint64_t kVocabulary = 128;
inline constexpr uint64_t kContext = 16;
inline constexpr uint64_t kEmbedding = 32;
inline constexpr uint64_t kInputs = kContext * kEmbedding;
inline constexpr uint64_t kBatch = 32;
inline constexpr uint32_t kRowGroups = 16;  // also the most ranks that there can be

// A rank calls everything but Create and ReportDeath. All arrays are [row][sample], kBatch samples a row, or,
// of partial sums, [row group][row][sample].
class Exchange {
 public:
  // Maps the memory; children inherit it. Exits the process with a message if there is not enough.
  static Exchange* Create(uint64_t hidden, uint32_t ranks);
  void Destroy();

  // Waits until every rank is here. A rank that finds that a peer has died says so and ends its process with
  // kPeerDiedExitCode: it does not return, and does not wait for ever.
  void Barrier();
  // The same check, for whoever waits for something else.
  void ExitIfPeerDied() const;
  // Of the launcher: wakes all who wait in Barrier.
  void ReportDeath(uint32_t rank);

  float* input() { return Array(0); }
  float* hidden(int layer) { return Array((kInputs + static_cast<uint64_t>(layer) * hidden_) * kBatch); }
  float* logits() { return hidden(2); }
  float* partials(int layer);

  // Rank 0 says it before a Barrier, all read it after.
  std::atomic<uint64_t> announced_step{0};
  std::atomic<bool> announced_resume{false};
  // Ranks that vote "my last save is still under way"; counted between Barriers.
  std::atomic<uint32_t> busy_ranks{0};

  static constexpr int kPeerDiedExitCode = 5;

 private:
  Exchange(uint64_t hidden, uint32_t ranks, uint64_t mapped_bytes)
      : hidden_(hidden), ranks_(ranks), mapped_bytes_(mapped_bytes) {}
  float* Array(uint64_t offset) { return reinterpret_cast<float*>(this + 1) + offset; }

  const uint64_t hidden_;
  const uint32_t ranks_;
  const uint64_t mapped_bytes_;
  std::atomic<uint32_t> arrived_{0};
  std::atomic<uint32_t> round_{0};  // the futex: grows when all have arrived
  std::atomic<int32_t> dead_rank_{-1};
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free,
              "atomics are shared between processes");

}  // namespace esker::example
