#include "client/log.h"

#include <cstdio>

namespace esker {

void Log(const std::string& message) { std::fprintf(stderr, "esker: %s\n", message.c_str()); }

}  // namespace esker
