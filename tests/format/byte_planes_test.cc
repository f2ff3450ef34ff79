#include "format/byte_planes.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "format/base/text.h"
#include "tests/testing/seed.h"

namespace esker {
namespace {

constexpr PlaneShape kShapes[] = {{1, 0}, {2, 0}, {2, 1}, {4, 0}, {4, 1}, {8, 0}, {8, 4}};

std::vector<std::byte> RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Planes one after the other, with a byte between them that nobody may touch.
class Planes {
 public:
  Planes(PlaneShape shape, size_t count) : bytes_(shape.width * (count + 1), kUntouched) {
    for (size_t k = 0; k < shape.width; ++k) {
      places_[k] = bytes_.data() + k * (count + 1);
      gaps_.push_back(places_[k] + count);
    }
  }

  std::byte* const* places() { return places_.data(); }
  const std::byte* const* const_places() { return places_.data(); }
  bool GapsAreUntouched() const {
    return std::all_of(gaps_.begin(), gaps_.end(), [](const std::byte* gap) { return *gap == kUntouched; });
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  static constexpr std::byte kUntouched{0xa5};
  std::vector<std::byte> bytes_;
  std::array<std::byte*, 8> places_ = {};
  std::vector<const std::byte*> gaps_;
};

TEST(BytePlanes, OnlyTheShapesOfTheFormatExist) {
  size_t found = 0;
  for (size_t width = 0; width <= 16; ++width) {
    for (int rotation = 0; rotation < 64; ++rotation) found += IsPlaneShape({width, rotation});
  }
  EXPECT_EQ(found, std::size(kShapes));
  for (const PlaneShape shape : kShapes) EXPECT_TRUE(IsPlaneShape(shape));
}

TEST(BytePlanes, ByHand) {
  const std::array<std::byte, 4> elements = {std::byte{0x01}, std::byte{0x80}, std::byte{0xff},
                                             std::byte{0x00}};
  Planes as_they_are({2, 0}, 2);
  SplitPlanes({2, 0}, elements.data(), 2, as_they_are.places());
  EXPECT_EQ(as_they_are.places()[0][0], std::byte{0x01});
  EXPECT_EQ(as_they_are.places()[0][1], std::byte{0xff});
  EXPECT_EQ(as_they_are.places()[1][0], std::byte{0x80});
  EXPECT_EQ(as_they_are.places()[1][1], std::byte{0x00});
  // 0x8001 becomes 0x0003, 0x00ff becomes 0x01fe.
  Planes rotated({2, 1}, 2);
  SplitPlanes({2, 1}, elements.data(), 2, rotated.places());
  EXPECT_EQ(rotated.places()[0][0], std::byte{0x03});
  EXPECT_EQ(rotated.places()[0][1], std::byte{0xfe});
  EXPECT_EQ(rotated.places()[1][0], std::byte{0x00});
  EXPECT_EQ(rotated.places()[1][1], std::byte{0x01});
}

// Of whatever length, so that what the vectorised loops leave over is there too.
TEST(BytePlanes, EveryKernelGivesThePortableOnesBytes) {
  const uint64_t seed = testing::TestSeed();
  const BytePlaneKernel& portable = BytePlaneKernels().front();
  ASSERT_EQ(portable.name, "portable");
  for (const BytePlaneKernel& kernel : BytePlaneKernels()) {
    for (const PlaneShape shape : kShapes) {
      for (size_t count = 0; count < 300; ++count) {
        SCOPED_TRACE(StrCat(std::string(kernel.name), ": ", count, " elements of ", shape.width, " bytes"));
        const std::vector<std::byte> elements = RandomBytes(count * shape.width, seed + count);
        Planes expected(shape, count);
        portable.split(shape, elements.data(), count, expected.places());
        Planes planes(shape, count);
        kernel.split(shape, elements.data(), count, planes.places());
        ASSERT_EQ(planes.bytes(), expected.bytes());
        ASSERT_TRUE(planes.GapsAreUntouched());
        std::vector<std::byte> back(elements.size() + 1, std::byte{0xa5});
        kernel.join(shape, planes.const_places(), count, back.data());
        ASSERT_EQ(back.back(), std::byte{0xa5});
        back.pop_back();
        ASSERT_EQ(back, elements);
      }
    }
  }
}

}  // namespace
}  // namespace esker
