// An eskerd in the test's own process that keeps everything in maps, and misbehaves when told to.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "format/base/mutex.h"
#include "format/chunk_record.h"
#include "format/hash.h"
#include "format/proto/service.pb.h"
#include "grpcpp/server.h"
#include "grpcpp/server_context.h"

namespace esker::testing {

enum class Rpc {
  kOpenRun,
  kBeginSave,
  kReportPart,
  kWaitSave,
  kAbortSave,
  kGetCheckpoint,
  kOfferChunks,
  kPutChunk,  // each chunk of a PutChunks stream, when it is complete
  kSealPart,
  kOpenRead,
  kRenewRead,
  kGetParts,
  kGetLayouts,
  kGetChunk,  // each want of a GetChunks stream
};

enum class When { kBefore, kAfter };  // it takes effect

// Thread-safe. Obeys format/proto/service.proto, as far as a client needs it.
class FakeServer {
 public:
  // Listens on a free port of the loopback interface.
  FakeServer();
  ~FakeServer();

  const std::string& address() const { return address_; }

  // --- misbehaviour
  // -------------------------------------------------------------------------------------------------

  // The server's process is gone: connections break, nobody listens. What was durable is kept for Start.
  void Stop();
  void Start();
  // Stop and Start in an instant, as far as a client can see; may be called in a hook.
  void Crash();
  // Forgets the chunks that are not sealed, and goes on.
  void LosePending();
  // Forgets which ranks have reported, and goes on.
  void ForgetReports();
  // Ends a save, as the server does with one that makes no progress.
  void AbortSave(const std::string& run, uint64_t step, const std::string& reason);
  // Forgets even what was durable, save for the runs.
  void LoseEverything();

  // Called around every RPC, on its thread and without locks. An error is the answer (or ends the stream). A
  // crash in kBefore means that the call had no effect, in kAfter that its answer was lost.
  using Hook = std::function<absl::Status(Rpc, When)>;
  void SetHook(Hook hook);
  // Calls of this kind get no answer until Unstall or Stop. kPutChunk: nothing more is read from the stream
  // either.
  void Stall(Rpc rpc);
  void Unstall();
  // Ends a PutChunks stream after so many chunks; 0: never.
  void SetPutsPerStream(int puts);
  // Blocks until as many calls of this kind were begun since the server was made.
  void AwaitCalls(Rpc rpc, uint64_t count);

  // What a fetched chunk looks like on its way out: head, body, and whatever is to be sent instead.
  struct Outgoing {
    ChunkInfo info;
    std::string stored;
    std::string head;  // sent instead of an encoded `info`, if not empty
  };
  void SetTamper(std::function<void(Outgoing*)> tamper);
  // Changes the parts when they are committed: the manifest will name what is made of it.
  void SetPartTamper(std::function<void(v1::Part*)> tamper);
  // Changes what GetParts, GetLayouts and GetCheckpoint (the manifest) answer.
  void SetEnvelopeTamper(std::function<void(Rpc, std::string*)> tamper);

  // --- what happened
  // ------------------------------------------------------------------------------------------------

  uint64_t Calls(Rpc rpc) const;
  // The chunks received, and those asked for, in order.
  std::vector<Hash128> PutHashes() const;
  std::vector<Hash128> WantedHashes() const;
  // How many chunks came with other bytes than their heads say: in a test that damages none, what was sent
  // has changed while it was on its way.
  uint64_t DamagedPuts() const;
  // How many SealPart requests had a layout with them.
  uint64_t LayoutsReceived() const;
  void ForgetCounts();
  bool IsCommitted(const std::string& run, uint64_t step) const;
  // The reason that AbortSave gave; empty if the save was not aborted.
  std::string AbortReason(const std::string& run, uint64_t step) const;
  std::set<CodecId> StoredCodecs() const;
  uint64_t open_leases() const;
  // Forgets the leases, as a restart does.
  void DropLeases();
  // Removes a chunk for good.
  void LoseChunk(const Hash128& hash);
  // The checkpoint's parts, by rank.
  std::map<uint32_t, v1::Part> Parts(const std::string& run, uint64_t step) const;

  // The services; only fake_server.cc knows them.
  class State;

 private:
  void Listen(const std::string& address);

  std::string address_;
  std::unique_ptr<State> state_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace esker::testing
