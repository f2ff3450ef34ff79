// esker dump FILE [--deep]
#include <cstdio>

#include "format/base/status.h"
#include "format/base/text.h"
#include "format/dump.h"
#include "tools/cli.h"
#include "tools/files.h"

namespace esker {
namespace {

struct DumpOptions {
  std::string path;
  bool deep = false;
};

absl::Status DumpSegment(Cli* cli, const DumpOptions& options) {
  Json lines = Json::array();
  const absl::Status status = DumpSegmentFile(options.path, options.deep, [&](const std::string& line) {
    if (cli->json) {
      lines.push_back(line);
    } else {
      std::printf("%s\n", line.c_str());
    }
  });
  cli->result["lines"] = std::move(lines);
  return status;
}

absl::Status Dump(Cli* cli, const DumpOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const ByteView bytes, MapForReading(options.path));
  const std::unique_ptr<const ByteView, void (*)(const ByteView*)> unmap(
      &bytes, [](const ByteView* mapping) { Unmap(*mapping); });
  cli->result["file"] = options.path;
  if (AsText(bytes).substr(0, 4) == "ESKS") return DumpSegment(cli, options);
  const absl::StatusOr<std::string> text = DumpBytes(bytes);
  if (!text.ok()) return Annotate(text.status(), options.path);
  if (cli->json) {
    cli->result["content"] = Json::parse(*text);
  } else {
    std::printf("%s\n", text->c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddDumpCommand(CLI::App* app, Cli* cli) {
  auto options = std::make_shared<DumpOptions>();
  CLI::App* command = AddCommand(app, cli, "dump", "Print any file that Esker wrote", options, &Dump);
  command->add_option("file", options->path, "A segment file, or one envelope or chunk record")->required();
  command->add_flag("--deep", options->deep, "In a segment, also decode every chunk and check its hash");
  command->footer("A damaged field is shown with what was expected. No server is needed.");
}

}  // namespace esker
