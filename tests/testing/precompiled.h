// What nearly every test includes, compiled once for all of them (tests/CMakeLists.txt). A test includes what
// it uses all the same: the lint and the preset `dev` read it without this.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "format/proto/catalog.pb.h"
#include "format/proto/local.pb.h"
#include "format/proto/service.grpc.pb.h"
