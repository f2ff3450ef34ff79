// delay_relay PORT MICROSECONDS: prints its address, and relays to 127.0.0.1:PORT until its input ends. To
// put a distance between `esker bench` and a server on the same machine.
#include <cstdio>
#include <cstdlib>

#include "tests/integration/delay_relay.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto relay =
      esker::testing::DelayRelay::Start(std::atoi(argv[1]), std::chrono::microseconds(std::atoi(argv[2])));
  if (!relay.ok()) {
    std::fprintf(stderr, "delay_relay: %s\n", relay.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", (*relay)->address().c_str());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}
