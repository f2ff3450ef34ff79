// The segment files: who gets which place, what is live in them, and how their space comes back.
//
// A place is *used* from Allocate until Release; it is *live* from AddLive (the index knows it) until
// Release. Space is given back in Reclaim and nowhere else, so only for places that were released: the
// callers release a place when no index entry, no open save and no read refers to it.
//
// Segments that hold nothing are *free*: the stock for new data. Emptied ones are kept, and new ones written
// with zeros ahead of use, since writes into a written file are about twice as fast as into a new one
// (docs/design/0005-written-segments.md).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "format/base/clock.h"
#include "format/base/mutex.h"
#include "format/base/thread_pool.h"
#include "format/chunk_record.h"
#include "format/segment_header.h"
#include "server/io/disk.h"
#include "server/store/data_directory.h"
#include "server/store/file_cache.h"

namespace esker::store {

struct SegmentSetOptions {
  std::string directory;  // of the files, for messages
  StoreId store_id{};
  uint64_t segment_bytes = 0;   // of new segments
  uint64_t recycle_bytes = 0;   // free segments take no more
  uint64_t min_free_bytes = 0;  // of the file system: left alone by the stock
  const Clock* clock = nullptr;
  // Called, on any thread and under no lock, when a segment failed (with the reason) and when a failed one is
  // gone.
  std::function<void(uint64_t segment_id, std::optional<std::string> why)> failure_changed;
};

// A run of bytes in a segment.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;

  uint64_t end() const { return offset + bytes; }
  auto operator<=>(const Extent&) const = default;
};

// A record's place that nothing refers to any more.
struct ReleasedPlace {
  uint64_t segment_id = 0;
  Extent extent;
  bool was_live = false;
};

struct ReclaimReport {
  uint64_t disk_bytes_freed = 0;
  uint64_t segments_recycled = 0;
  uint64_t recycled_bytes = 0;

  ReclaimReport& operator+=(const ReclaimReport& other);
};

// A segment as recovery found it, or as it is now.
struct SegmentInfo {
  enum class State {
    kFree,    // empty, in stock for new data
    kActive,  // takes the next record; one at most
    kClosed,  // takes no more until it is recycled
    kFailed,  // takes no more for good; removed once it is empty
    kTaken,   // on its way from one of these to another
  };
  uint64_t id = 0;
  uint64_t generation = 0;
  uint64_t segment_bytes = 0;
  State state = State::kClosed;
  uint64_t tail = kFirstRecordOffset;  // where the next record goes
  uint64_t used_bytes = 0;
  uint64_t live_bytes = 0;
  std::string fault{};      // why it failed
  bool unreadable = false;  // the file is gone, or another's: reads are refused
};

struct WritePlace {
  RecordPlace place;
  std::shared_ptr<DiskFile> file;
};

// Thread-safe.
class SegmentSet {
 public:
  // `disk` must outlive it.
  SegmentSet(Disk* disk, SegmentSetOptions options);
  ~SegmentSet();
  // Ends a scheduled Reclaim; no further one begins.
  void StopReclaimer();

  // --- recovery, before all else -----------------------------------------------------------------

  // Takes a segment over. What lies outside live places is given back by AddDead and Reclaim.
  void Adopt(SegmentInfo info);
  void AddDead(uint64_t segment_id, const std::vector<Extent>& extents);
  // Lets an adopted segment take records from its tail on.
  void Activate(uint64_t segment_id, std::shared_ptr<DiskFile> file);
  // The next new segment's id is higher than any that was named so far.
  void AvoidId(uint64_t segment_id);

  // --- writing -----------------------------------------------------------------------------------

  // A place for a record. Blocks for I/O when a segment is begun. kResourceExhausted gives the figures.
  absl::StatusOr<WritePlace> Allocate(uint64_t record_bytes);
  // A record was written. The result numbers it among the segment's, for SyncUpTo.
  uint64_t WriteFinished(uint64_t segment_id);
  // Makes the writes up to this number durable; at once if they are. One thread at a time. After an error
  // they never will be, nor any later one of this segment.
  absl::Status SyncUpTo(uint64_t segment_id, uint64_t write_number);
  uint64_t synced_writes(uint64_t segment_id) const;
  // The segment takes no more records.
  void Fail(uint64_t segment_id, const absl::Status& why);

  void AddLive(uint64_t segment_id, uint64_t record_bytes);
  void Release(std::span<const ReleasedPlace> places);

  // --- space -------------------------------------------------------------------------------------

  // Gives the space of released places back: empty segments are recycled or unlinked, holes are punched into
  // others.
  ReclaimReport Reclaim();
  // The same soon, on a thread of its own.
  void ScheduleReclaim();
  // While held, Reclaim does nothing: the index may come back with entries that were thought gone.
  void HoldReclaim(bool hold);
  // Runs `visit` while no segment is begun, recycled, punched or removed.
  absl::Status WithFilesAtRest(const std::function<absl::Status()>& visit);

  // Disk that new records can take without any more of the file system: free segments and the rest of the
  // active one.
  uint64_t reusable_bytes() const;

  // --- the stock ---------------------------------------------------------------------------------

  // No save is open any more: what was begun since the last call is what saves take.
  void NoteSavesEnded();
  // A small step towards a stock that holds what the largest of the last saves took, all of it written: makes
  // a segment, writes a piece of a free one, or unlinks one that is too many. Returns whether there is more
  // to do. Blocks for I/O, and whoever needs a segment meanwhile waits.
  absl::StatusOr<bool> TendStock();

  // --- reading -----------------------------------------------------------------------------------

  // kDataLoss, naming the file, if it is gone or another's.
  absl::StatusOr<std::shared_ptr<DiskFile>> Open(uint64_t segment_id);
  std::string FilePath(uint64_t segment_id) const;
  std::vector<SegmentInfo> List() const;
  // Released and not yet given back.
  std::vector<Extent> Dead(uint64_t segment_id) const;
  // st_blocks of all files.
  absl::StatusOr<uint64_t> AllocatedBytes();
  // Whether the file system can punch holes (learnt at the first).
  bool can_punch() const;

 private:
  struct Segment {
    SegmentInfo info;
    std::vector<Extent> dead;
    uint64_t allocated_bytes = 0;  // while free
    uint64_t written_to = 0;       // while free: from here on TendStock has to write it
    uint64_t finished_writes = 0;
    uint64_t synced_writes = 0;
    bool sync_failed = false;
  };
  struct Emptied {
    uint64_t id;
    bool failed;
    bool unreadable;
  };
  struct Punch {
    uint64_t id;
    std::vector<Extent> extents;
  };

  // Allocate's steps.
  std::optional<WritePlace> TakePlace(uint64_t record_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status BeginSegment() ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::StatusOr<std::shared_ptr<DiskFile>> RecycleSegment(uint64_t segment_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::StatusOr<std::shared_ptr<DiskFile>> MakeSegment(uint64_t* segment_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::Status WriteHeader(DiskFile* file, const SegmentInfo& info);
  absl::Status DiskFull(const absl::Status& status, uint64_t bytes) const;
  void CloseActive() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddDeadLocked(Segment* segment, const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // TendStock's steps.
  uint64_t StockTarget() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<uint64_t> FindSurplus(uint64_t target_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<uint64_t> FindUnwritten() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the file system can spare so many bytes for the stock.
  absl::StatusOr<bool> CanSpare(uint64_t bytes) const;
  absl::StatusOr<bool> AddToStock() ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::StatusOr<bool> RemoveFromStock(uint64_t segment_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::StatusOr<bool> FillHoles(uint64_t segment_id, DiskFile* file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  absl::StatusOr<bool> WritePiece(uint64_t segment_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(grow_mu_);
  void BecomeFree(Segment* segment, uint64_t allocated_bytes, uint64_t written_to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Reclaim's steps.
  void ReclaimInBackground();
  void TakeReclaimable(std::vector<Emptied>* emptied, std::vector<Punch>* punches);
  // Returns whether a file was unlinked.
  bool RetireEmptied(const Emptied& emptied, ReclaimReport* report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(reclaim_mu_);
  bool Unlink(const Emptied& emptied) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reclaim_mu_);
  void PunchHoles(Punch punch, ReclaimReport* report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reclaim_mu_);

  Segment& At(uint64_t segment_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  const Segment& At(uint64_t segment_id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Disk* const disk_;
  const SegmentSetOptions options_;
  FileCache files_;  // has its own lock

  // Lock order: grow_mu_, reclaim_mu_, mu_. I/O happens under the first two, never under mu_. FileCache and
  // ThreadPool lock for themselves, and last.
  Mutex grow_mu_;     // beginning a segment, tending the stock
  Mutex reclaim_mu_;  // giving space back
  mutable Mutex mu_;
  std::map<uint64_t, Segment> segments_ ABSL_GUARDED_BY(mu_);
  std::set<uint64_t> touched_ ABSL_GUARDED_BY(mu_);  // may have something to give back
  uint64_t active_id_ ABSL_GUARDED_BY(mu_) = 0;      // 0: none
  std::shared_ptr<DiskFile> active_file_ ABSL_GUARDED_BY(mu_);
  uint64_t free_bytes_ ABSL_GUARDED_BY(mu_) = 0;     // allocated to free segments
  uint64_t begun_bytes_ ABSL_GUARDED_BY(mu_) = 0;    // of segments, since NoteSavesEnded
  uint64_t adopted_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of empty segments
  // What would have been enough for each of the last saves, the last one first.
  std::deque<uint64_t> wanted_bytes_ ABSL_GUARDED_BY(mu_);
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  bool hold_reclaim_ ABSL_GUARDED_BY(mu_) = false;
  bool reclaim_scheduled_ ABSL_GUARDED_BY(mu_) = false;
  bool can_punch_ ABSL_GUARDED_BY(mu_) = true;

  std::unique_ptr<ThreadPool> reclaimer_ ABSL_GUARDED_BY(mu_);
};

}  // namespace esker::store
