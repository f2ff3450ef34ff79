// The frame around every stored metadata message: says what it is, of which version, how long, and whether it
// is intact.
//
//   0  u32  magic: "ESK" and the kind's letter
//   4  u16  format version
//   6  u16  reserved, 0
//   8  u64  body bytes
//  16  u32  CRC-32C of the body
//  20  u32  CRC-32C of bytes 0..19
//  24  body: a protobuf message
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "format/base/bytes.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "google/protobuf/message.h"

namespace esker {

inline constexpr uint16_t kFormatVersion = 1;
inline constexpr uint64_t kEnvelopeHeaderBytes = 24;
// Protobuf's own limit. Wrapping more is a programmer's error.
inline constexpr uint64_t kMaxEnvelopeBodyBytes = (uint64_t{1} << 31) - 1;

enum class EnvelopeKind : char {
  kLayout = 'L',
  kPart = 'P',
  kManifest = 'M',
  kRun = 'R',
  kSave = 'V',
  kCheckpoint = 'K',
};

// The envelope with `body` in it.
std::string WrapEnvelope(EnvelopeKind kind, std::string_view body);

// The body, a view into `envelope`. kDataLoss if it is cut short, too long or damaged, or of another kind;
// kUnimplemented if it is of a newer version. The message says what was expected and what was found.
absl::StatusOr<std::string_view> UnwrapEnvelope(EnvelopeKind kind, std::string_view envelope);

// Serialises with a fixed order of fields and map entries.
std::string SerializeDeterministic(const google::protobuf::Message& message);

// Wraps a protobuf message. Serialises deterministically, so that equal messages have equal digests.
template <typename Message>
std::string EncodeEnvelope(EnvelopeKind kind, const Message& message) {
  return WrapEnvelope(kind, SerializeDeterministic(message));
}
// Unwraps and parses; kDataLoss if the body is no such message.
template <typename Message>
absl::StatusOr<Message> DecodeEnvelope(EnvelopeKind kind, std::string_view envelope) {
  ESKER_ASSIGN_OR_RETURN(const std::string_view body, UnwrapEnvelope(kind, envelope));
  Message message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return absl::DataLossError(StrCat("envelope of kind '", std::string(1, static_cast<char>(kind)),
                                      "': its checksum is right, but its ", body.size(), " bytes are not a ",
                                      Message::descriptor()->full_name()));
  }
  return message;
}

}  // namespace esker
