// What a user of the library should know and no call returns.
#pragma once

#include <string>

namespace esker {

// Writes "esker: <message>" to stderr, as one line. For what happens once, not for each save.
void Log(const std::string& message);

}  // namespace esker
