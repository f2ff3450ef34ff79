#include "server/config.h"

#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_join.h"
#include "format/base/duration.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "format/names.h"
#include "server/rpc/listen_address.h"

namespace esker {
namespace {

using std::chrono::milliseconds;

// One flag, which is also a key of the file.
struct Knob {
  std::string name;
  std::string placeholder;
  std::string help;
  std::function<absl::Status(const std::string& text, ServerConfig* config)> set;
};

absl::StatusOr<uint64_t> ParseMebibytes(const std::string& text, uint64_t least, uint64_t most) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || value < least || value > most) {
    return absl::InvalidArgumentError(StrCat("expected a whole number of MiB from ", least, " to ", most,
                                             ", found '", Printable(text), "'"));
  }
  return value << 20;
}

absl::StatusOr<uint64_t> ParseMillis(const std::string& text, milliseconds least, milliseconds most) {
  ESKER_ASSIGN_OR_RETURN(const milliseconds value, ParseDuration(text));
  if (value < least || value > most) {
    return absl::InvalidArgumentError(StrCat("expected a duration from ", FormatDuration(least), " to ",
                                             FormatDuration(most), ", found ", FormatDuration(value)));
  }
  return static_cast<uint64_t>(value.count());
}

absl::StatusOr<std::string> ParseChoice(const std::string& text, const std::vector<std::string>& choices) {
  for (const std::string& choice : choices) {
    if (text == choice) return text;
  }
  return absl::InvalidArgumentError(
      StrCat("expected one of ", absl::StrJoin(choices, ", "), ", found '", Printable(text), "'"));
}

absl::Status SetPath(const std::string& text, std::string* path) {
  if (text.empty()) return absl::InvalidArgumentError("expected a path, found nothing");
  *path = text;
  return absl::OkStatus();
}

absl::Status SetListen(const std::string& text, ServerConfig* config) {
  ESKER_RETURN_IF_ERROR(ParseListenAddress(text).status());
  config->rpc.listen = text;
  return absl::OkStatus();
}

absl::Status SetDiskEngine(const std::string& text, ServerConfig* config) {
  ESKER_ASSIGN_OR_RETURN(const std::string name, ParseChoice(text, {"auto", "io_uring", "threads"}));
  config->store.engine = name == "auto"       ? DiskEngine::kAuto
                         : name == "io_uring" ? DiskEngine::kUring
                                              : DiskEngine::kThreadPool;
  return absl::OkStatus();
}

absl::Status SetReadLeaseTtl(const std::string& text, ServerConfig* config) {
  ESKER_ASSIGN_OR_RETURN(config->store.read_lease_ttl_ms,
                         ParseMillis(text, milliseconds(100), std::chrono::hours(24)));
  config->rpc.read_lease_ttl_ms = config->store.read_lease_ttl_ms;
  return absl::OkStatus();
}

absl::Status SetLogLevel(const std::string& text, ServerConfig* config) {
  ESKER_ASSIGN_OR_RETURN(config->log_level,
                         ParseChoice(text, {"trace", "debug", "info", "warn", "error", "off"}));
  return absl::OkStatus();
}

// A setter of a size in MiB.
auto Mebibytes(uint64_t StoreOptions::*field, uint64_t least, uint64_t most) {
  return [=](const std::string& text, ServerConfig* config) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(config->store.*field, ParseMebibytes(text, least, most));
    return absl::OkStatus();
  };
}

// A setter of one of the coordinator's durations.
auto Duration(uint64_t CoordinatorOptions::*field, milliseconds least, milliseconds most) {
  return [=](const std::string& text, ServerConfig* config) -> absl::Status {
    ESKER_ASSIGN_OR_RETURN(config->coordinator.*field, ParseMillis(text, least, most));
    return absl::OkStatus();
  };
}

std::vector<Knob> Knobs() {
  constexpr uint64_t kTebibyte = uint64_t{1} << 20;  // in MiB
  return {
      {"data", "DIR",
       "Data directory; required. Made if it does not exist. Put it on the fastest local disk, on a file "
       "system with "
       "O_DIRECT (ext4, xfs).",
       [](const std::string& text, ServerConfig* config) { return SetPath(text, &config->store.directory); }},
      {"listen", "HOST:PORT",
       "Address to serve on. Default 127.0.0.1:7070, this machine only; 0.0.0.0:7070 for others (there is no "
       "authentication: only in a network that you trust). Port 0: any that is free.",
       SetListen},
      {"port-file", "FILE",
       "Write the port to this file once the server serves. Default: none. For scripts that listen on port "
       "0.",
       [](const std::string& text, ServerConfig* config) { return SetPath(text, &config->port_file); }},
      {"users-file", "FILE",
       "Stop when no process holds a lock (flock) on this file any more. Default: none. For a job that "
       "brings "
       "up a server of its own.",
       [](const std::string& text, ServerConfig* config) { return SetPath(text, &config->users_file); }},
      {"disk-engine", "NAME",
       "auto, io_uring or threads. Default auto: io_uring where the kernel allows it, else threads. Change "
       "it to have "
       "a missing io_uring be an error, or to rule it out.",
       SetDiskEngine},
      {"segment-mib", "N",
       "Size of a new segment file, in MiB. Default 256. Lower it on disks below 10 GiB: space is reserved "
       "by segments.",
       Mebibytes(&StoreOptions::segment_bytes, 16, 64 << 10)},
      {"buffer-pool-mib", "N",
       "Memory for chunks on their way to and from the disk, in MiB; all of it is taken at the start. "
       "Default 128. Raise "
       "it if more than 32 ranks save at a time and the network is faster than the disk.",
       Mebibytes(&StoreOptions::buffer_pool_bytes, 16, kTebibyte)},
      {"recycle-mib", "N",
       "Limit of the stock of empty segments for new data, in MiB. Default 65536. The stock is what the "
       "largest of the "
       "last saves took. Raise it if one save writes more; lower it if others need the disk; 0: no stock.",
       Mebibytes(&StoreOptions::recycle_bytes, 0, 1024 * kTebibyte)},
      {"min-free-mib", "N",
       "Space of the file system that is never promised to a save, in MiB. Default 256. Raise it if others "
       "write to the "
       "same file system.",
       Mebibytes(&StoreOptions::min_free_bytes, 0, 1024 * kTebibyte)},
      {"read-lease-ttl", "DURATION",
       "How long a reader that fell silent keeps garbage collection off its checkpoint. Default 30s. Raise "
       "it if restores "
       "fail with lost leases on a network that stalls for longer.",
       SetReadLeaseTtl},
      {"save-timeout", "DURATION",
       "A save of which no rank sent anything for so long is aborted. Default 5m. Raise it if ranks may "
       "pause for longer "
       "within one save.",
       Duration(&CoordinatorOptions::save_timeout_ms, milliseconds(100), std::chrono::hours(24 * 7))},
      {"gc-interval", "DURATION",
       "How often retention policies are applied and space is freed. Default 1m; 0: only when asked (esker "
       "gc).",
       Duration(&CoordinatorOptions::gc_interval_ms, milliseconds(0), std::chrono::hours(24 * 7))},
      {"log-level", "LEVEL", "trace, debug, info, warn, error or off. Default info. Logs go to stderr.",
       SetLogLevel},
  };
}

// --- the file
// ---------------------------------------------------------------------------------------------------------

absl::Status ErrorAt(const std::string& path, const toml::source_region& where, std::string_view message) {
  return absl::InvalidArgumentError(StrCat(path, ":", where.begin.line, ": ", message));
}

absl::StatusOr<toml::table> ReadToml(const std::string& path) {
  try {
    return toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    if (error.source().begin.line == 0) {
      return absl::InvalidArgumentError(StrCat("--config: can't read ", path, ": ", error.description()));
    }
    return ErrorAt(path, error.source(), error.description());
  }
}

std::optional<std::string> TextOf(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return StrCat(number->get());
  return std::nullopt;
}

absl::Status ApplyFile(const std::string& path, const std::vector<Knob>& knobs, ServerConfig* config) {
  ESKER_ASSIGN_OR_RETURN(const toml::table table, ReadToml(path));
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const auto knob =
        std::find_if(knobs.begin(), knobs.end(), [&](const Knob& each) { return each.name == name; });
    if (knob == knobs.end()) {
      std::vector<std::string> names;
      for (const Knob& each : knobs) names.push_back(each.name);
      return ErrorAt(
          path, key.source(),
          StrCat("unknown key '", Printable(name), "'; the keys are ", absl::StrJoin(names, ", ")));
    }
    const std::optional<std::string> text = TextOf(node);
    if (!text) {
      return ErrorAt(path, node.source(),
                     StrCat(name, ": expected a string or a whole number (", knob->placeholder, ")"));
    }
    if (const absl::Status set = knob->set(*text, config); !set.ok()) {
      return ErrorAt(path, node.source(), StrCat(name, ": ", set.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view EskerVersion() { return ESKER_VERSION; }

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CLI::App app("eskerd: Esker's checkpoint storage server.", "eskerd");
  app.set_version_flag("--version", StrCat("eskerd ", EskerVersion()), "Print the version and exit.");
  app.footer(
      "DURATION is a whole number with a unit: 500ms, 30s, 5m, 12h, 7d. Exit codes: 0 stopped by a signal, 1 "
      "error, 2 wrong flags or configuration.");
  std::string config_path;
  app.add_option(
         "--config", config_path,
         "TOML file with the names below as keys, such as listen = \"0.0.0.0:7070\". Flags win over it.")
      ->type_name("FILE");
  const std::vector<Knob> knobs = Knobs();
  std::vector<std::string> values(knobs.size());
  for (size_t i = 0; i < knobs.size(); ++i) {
    app.add_option(StrCat("--", knobs[i].name), values[i], knobs[i].help)->type_name(knobs[i].placeholder);
  }

  CommandLine line;
  try {
    // CLI11 takes them from the back.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    line.text = app.help();
    return line;
  } catch (const CLI::CallForVersion&) {
    line.text = StrCat(app.version(), "\n");
    return line;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(StrCat(error.what(), "; eskerd --help lists the flags"));
  }

  if (!config_path.empty()) ESKER_RETURN_IF_ERROR(ApplyFile(config_path, knobs, &line.config));
  for (size_t i = 0; i < knobs.size(); ++i) {
    const std::string flag = StrCat("--", knobs[i].name);
    if (app.count(flag) == 0) continue;
    ESKER_RETURN_IF_ERROR(Annotate(knobs[i].set(values[i], &line.config), flag));
  }
  if (line.config.store.directory.empty()) {
    return absl::InvalidArgumentError(
        "--data DIR is missing: the directory in which the server keeps its data");
  }
  line.config.rpc.data_directory = line.config.store.directory;
  line.config.rpc.version = std::string(EskerVersion());
  return line;
}

}  // namespace esker
