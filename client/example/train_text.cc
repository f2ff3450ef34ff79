// esker-train-text: trains a small language model on a text with several rank processes, and saves its state
// through libesker every few steps. Kill a rank, or the server, and start it again: it goes on from the last
// committed step, and ends with the same bits as if nothing had happened. rank.cc is the part to read: it
// shows all that a training job does with Esker.
#include <CLI/CLI.hpp>

#include "exchange.h"
#include "launcher.h"
#include "options.h"

int main(int argc, char** argv) {
  using esker::example::kBatch;
  using esker::example::kRowGroups;
  esker::example::Options options;
  CLI::App app{"Trains a small character-level language model, and saves its state with Esker.",
               "esker-train-text"};
  app.add_option("--server", options.server, "Esker server, HOST:PORT")->capture_default_str();
  app.add_option("--run", options.run, "Esker run to save to and to resume from")->capture_default_str();
  app.add_option("--text", options.text, "Text file to train on")->required();
  app.add_option("--ranks", options.ranks, "Rank processes; may differ from that of the run so far")
      ->capture_default_str()
      ->check(CLI::Range(uint32_t{1}, kRowGroups));
  app.add_option("--hidden", options.hidden,
                 "Hidden size, a multiple of 32: 1280 makes 30 MB of state, 4096 makes 232 MB")
      ->capture_default_str()
      ->check(CLI::Validator(
          [](std::string& text) {
            const uint64_t value = std::strtoull(text.c_str(), nullptr, 10);
            return value > 0 && value % kBatch == 0 ? std::string() : "must be a multiple of 32";
          },
          "MULTIPLE OF 32"));
  app.add_option("--seed", options.seed, "Seed of weights, data order and noise")->capture_default_str();
  app.add_option("--steps", options.steps, "Step at which training ends")->capture_default_str();
  app.add_option("--save-every", options.save_every,
                 "Steps between saves; the last step is always saved; 0: never save")
      ->capture_default_str();
  app.add_option("--step-delay-ms", options.step_delay_ms, "Makes each step slower, for demonstrations")
      ->capture_default_str();
  app.add_option("--save-timeout-ms", options.save_timeout_ms, "When a save is given up")
      ->capture_default_str();
  app.add_flag("--skip-when-busy", options.skip_when_busy,
               "Skip a save that is due while the one before is under way");
  app.add_flag("--zstd", options.zstd, "Compress");
  app.add_option("--max-restarts", options.max_restarts, "How often to start all ranks again after one died")
      ->capture_default_str();
  app.add_option("--final-state", options.final_state,
                 "File for all weights and moments after the last step, raw");
  app.add_option("--loss-log", options.loss_log, "File for 'STEP LOSS' lines");
  CLI11_PARSE(app, argc, argv);
  return esker::example::Launch(options);
}
