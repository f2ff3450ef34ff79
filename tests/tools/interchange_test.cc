#include "tools/interchange.h"

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace esker {
namespace {

class InterchangeTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(directory_ / name, std::ios::binary) << bytes;
  }
  Format FormatOf(const std::string& bytes) {
    Write("file", bytes);
    const absl::StatusOr<Format> format = DetectFormat(directory_ / "file");
    EXPECT_OK(format);
    return format.value_or(Format::kDcp);
  }

  testing::TempDir directory_;
};

TEST_F(InterchangeTest, FilesAreKnownByTheirFirstBytes) {
  EXPECT_EQ(FormatOf("PK\x03\x04rest"), Format::kTorch);
  EXPECT_EQ(FormatOf("\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19."), Format::kTorch);
  EXPECT_EQ(FormatOf(std::string("\x10\0\0\0\0\0\0\0{}", 10)), Format::kSafetensors);
  EXPECT_EQ(FormatOf("GGUF"), Format::kSafetensors);
  EXPECT_EQ(FormatOf(""), Format::kSafetensors);
}

TEST_F(InterchangeTest, ASafetensorsHeaderWhoseLengthLooksLikeAPickleIsNone) {
  EXPECT_EQ(FormatOf(std::string("\x80\x02\0\0\0\0\0\0{\"a\":", 13)), Format::kSafetensors);
}

TEST_F(InterchangeTest, ADirectoryWithMetadataIsOfDcp) {
  ASSERT_OK_AND_ASSIGN(Format format, DetectFormat(directory_ / ""));
  EXPECT_EQ(format, Format::kSafetensors);
  Write(".metadata", "");
  ASSERT_OK_AND_ASSIGN(format, DetectFormat(directory_ / ""));
  EXPECT_EQ(format, Format::kDcp);
}

TEST_F(InterchangeTest, WhatIsMissingIsNotFound) {
  EXPECT_STATUS(DetectFormat(directory_ / "none").status(), absl::StatusCode::kNotFound, "none");
}

TEST_F(InterchangeTest, APythonWithoutThePackagesIsNamed) {
  ASSERT_EQ(::setenv("ESKER_PYTHON", "/bin/false", 1), 0);
  EXPECT_STATUS(BecomeInterchange({"save"}), absl::StatusCode::kUnimplemented, "/bin/false");
  ASSERT_EQ(::setenv("ESKER_PYTHON", (directory_ / "no-python").c_str(), 1), 0);
  EXPECT_STATUS(BecomeInterchange({"save"}), absl::StatusCode::kUnimplemented, "pip install");
  ::unsetenv("ESKER_PYTHON");
}

}  // namespace
}  // namespace esker
