#include "format/envelope.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "format/hash.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace esker {
namespace {

constexpr size_t kVersionAt = 4;
constexpr size_t kReservedAt = 6;
constexpr size_t kBodyBytesAt = 8;
constexpr size_t kBodyCrcAt = 16;
constexpr size_t kHeaderCrcAt = 20;
static_assert(kHeaderCrcAt + sizeof(uint32_t) == kEnvelopeHeaderBytes);

std::string MagicOf(EnvelopeKind kind) { return std::string("ESK") + static_cast<char>(kind); }

absl::Status Damaged(EnvelopeKind kind, std::string_view what) {
  return absl::DataLossError(
      StrCat("envelope of kind '", std::string(1, static_cast<char>(kind)), "': ", what));
}

// Whether the 24 bytes are intact, of this kind, and of a version that can be read.
absl::Status CheckHeader(EnvelopeKind kind, ByteView header) {
  const std::string_view magic = AsText(header.first(4));
  if (magic != MagicOf(kind)) {
    return Damaged(kind, StrCat("expected the magic number \"", MagicOf(kind), "\", found \"",
                                absl::CHexEscape(ToAbsl(magic)), "\""));
  }
  const uint32_t crc = Crc32c(header.first(kHeaderCrcAt));
  const auto stored_crc = LoadLittle<uint32_t>(header.data() + kHeaderCrcAt);
  if (crc != stored_crc) {
    return Damaged(
        kind, absl::StrFormat("its header is damaged: it says CRC-32C %08x, but has %08x", stored_crc, crc));
  }
  const auto version = LoadLittle<uint16_t>(header.data() + kVersionAt);
  if (version > kFormatVersion) {
    return absl::UnimplementedError(absl::StrFormat(
        "envelope of kind '%c': written in format version %d; this program reads up to %d: use a newer one",
        static_cast<char>(kind), version, kFormatVersion));
  }
  if (version == 0) return Damaged(kind, "expected a format version of 1 or more, found 0");
  const auto reserved = LoadLittle<uint16_t>(header.data() + kReservedAt);
  if (reserved != 0) return Damaged(kind, StrCat("expected 0 in the reserved bytes, found ", reserved));
  return absl::OkStatus();
}

}  // namespace

std::string WrapEnvelope(EnvelopeKind kind, std::string_view body) {
  ESKER_CHECK(body.size() <= kMaxEnvelopeBodyBytes);
  std::string envelope(kEnvelopeHeaderBytes, '\0');
  auto* header = reinterpret_cast<std::byte*>(envelope.data());
  MagicOf(kind).copy(envelope.data(), 4);
  StoreLittle<uint16_t>(header + kVersionAt, kFormatVersion);
  StoreLittle<uint64_t>(header + kBodyBytesAt, body.size());
  StoreLittle<uint32_t>(header + kBodyCrcAt, Crc32c(AsBytes(body)));
  StoreLittle<uint32_t>(header + kHeaderCrcAt, Crc32c({header, kHeaderCrcAt}));
  envelope.append(body);
  return envelope;
}

absl::StatusOr<std::string_view> UnwrapEnvelope(EnvelopeKind kind, std::string_view envelope) {
  if (envelope.size() < kEnvelopeHeaderBytes) {
    return Damaged(kind, StrCat("cut short: expected at least ", kEnvelopeHeaderBytes, " bytes, found ",
                                envelope.size()));
  }
  const ByteView header = AsBytes(envelope).first(kEnvelopeHeaderBytes);
  ESKER_RETURN_IF_ERROR(CheckHeader(kind, header));
  const std::string_view body = envelope.substr(kEnvelopeHeaderBytes);
  const auto body_bytes = LoadLittle<uint64_t>(header.data() + kBodyBytesAt);
  if (body_bytes != body.size() || body_bytes > kMaxEnvelopeBodyBytes) {
    return Damaged(kind, StrCat("expected a body of ", body_bytes, " bytes (at most ", kMaxEnvelopeBodyBytes,
                                "), found ", body.size()));
  }
  const uint32_t crc = Crc32c(AsBytes(body));
  const auto stored_crc = LoadLittle<uint32_t>(header.data() + kBodyCrcAt);
  if (crc != stored_crc) {
    return Damaged(
        kind, absl::StrFormat("its body is damaged: expected CRC-32C %08x, found %08x", stored_crc, crc));
  }
  return body;
}

std::string SerializeDeterministic(const google::protobuf::Message& message) {
  std::string bytes;
  bool whole = false;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    whole = message.SerializeToCodedStream(&coded);
  }
  ESKER_CHECK(whole);
  return bytes;
}

}  // namespace esker
