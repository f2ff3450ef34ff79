// esker status
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "tools/cli.h"

namespace esker {
namespace {

struct StatusOptions {};

Json StatusJson(const v1::StatusResponse& status) {
  return {{"server_id", status.server_id()},
          {"version", status.version()},
          {"data_directory", status.data_directory()},
          {"disk_engine", status.disk_engine()},
          {"uptime_ms", status.uptime_ms()},
          {"disk_total_bytes", status.disk_total_bytes()},
          {"disk_available_bytes", status.disk_available_bytes()},
          {"reserved_bytes", status.reserved_bytes()},
          {"segments", status.segments()},
          {"segments_free", status.segments_free()},
          {"segment_bytes", status.segment_bytes()},
          {"live_bytes", status.live_bytes()},
          {"allocated_bytes", status.allocated_bytes()},
          {"chunks", status.chunks()},
          {"parts", status.parts()},
          {"layouts", status.layouts()},
          {"open_saves", status.open_saves()},
          {"open_reads", status.open_reads()},
          {"chunks_read", status.chunks_read()},
          {"chunk_reads_joined", status.chunk_reads_joined()},
          {"peak_rss_bytes", status.peak_rss_bytes()},
          {"cpu_seconds", status.cpu_seconds()},
          {"failed_segments", status.failed_segments()}};
}

void Print(const Cli& cli, const v1::StatusResponse& status) {
  const auto line = [](const char* label, const std::string& text) {
    std::printf("%-10s %s\n", label, text.c_str());
  };
  line("server", absl::StrCat(cli.server, "  ", status.server_id(), "  version ", status.version(), "  up ",
                              HumanDuration(static_cast<int64_t>(status.uptime_ms()))));
  line("data", status.data_directory());
  line("engine", status.disk_engine());
  line("disk", absl::StrCat(HumanBytes(status.disk_available_bytes()), " available of ",
                            HumanBytes(status.disk_total_bytes()), ", ", HumanBytes(status.reserved_bytes()),
                            " promised to saves under way"));
  line("segments", absl::StrCat(status.segments(), " of ", HumanBytes(status.segment_bytes()), ", ",
                                status.segments_free(), " of them empty and kept for new data; ",
                                HumanBytes(status.live_bytes()), " live of ",
                                HumanBytes(status.allocated_bytes()), " on disk"));
  line("stored",
       absl::StrCat(status.chunks(), " chunks, ", status.parts(), " parts, ", status.layouts(), " layouts"));
  line("open", absl::StrCat(status.open_saves(), " saves, ", status.open_reads(), " restores"));
  line("process", absl::StrFormat("peak memory %s, CPU %.1f s", HumanBytes(status.peak_rss_bytes()),
                                  status.cpu_seconds()));
  for (const std::string& segment : status.failed_segments()) {
    line("FAILED", absl::StrCat(segment, ": a write or fsync failed; it takes no more writes"));
  }
}

absl::Status ShowStatus(Cli* cli, const StatusOptions&) {
  ESKER_ASSIGN_OR_RETURN(const auto admin, ConnectAdmin(*cli));
  ESKER_ASSIGN_OR_RETURN(const v1::StatusResponse status, admin->Status());
  cli->result["server"] = cli->server;
  cli->result.update(StatusJson(status));
  if (!cli->json) Print(*cli, status);
  return absl::OkStatus();
}

}  // namespace

void AddStatusCommand(CLI::App* app, Cli* cli) {
  AddCommand(app, cli, "status", "Show the server's disk engine, space, counts and memory",
             std::make_shared<StatusOptions>(), &ShowStatus);
}

}  // namespace esker
