// esker bench codec [--size BYTES] [--passes N] [--file MODEL.safetensors]…
//
// Every codec over every tensor set, a chunk at a time, by one thread, as a worker of a save or a restore
// runs them. Speeds are raw bytes by the thread's processor time, the median of the passes; what is decoded
// is compared.
#include <time.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "format/base/status.h"
#include "format/chunk_record.h"
#include "format/codec.h"
#include "tools/cli.h"
#include "tools/tensor_sets.h"

namespace esker {
namespace {

struct CodecBenchOptions {
  std::string size = "32MiB";
  int passes = 5;
  std::vector<std::string> files;
};

// A tensor set's chunks, in the encoding of one codec. Memory is used again from pass to pass.
class CodecBench {
 public:
  CodecBench(const Codec& codec, const TensorSet& set);

  void Encode();
  absl::Status Decode();
  // Whether what was decoded last is the set.
  bool IsRight() const { return back_ == set_.bytes; }
  uint64_t StoredBytes() const;

 private:
  struct Chunk {
    ByteView raw;
    MutableBytes back;
    std::vector<std::byte> encoded;
    bool is_encoded = false;  // else it is stored raw
  };

  const Codec& codec_;
  const TensorSet& set_;
  std::vector<std::byte> back_;
  std::vector<Chunk> chunks_;
};

CodecBench::CodecBench(const Codec& codec, const TensorSet& set)
    : codec_(codec), set_(set), back_(set.bytes.size()) {
  for (size_t at = 0; at < back_.size(); at += kMaxChunkBytes) {
    const size_t bytes = std::min<size_t>(kMaxChunkBytes, back_.size() - at);
    chunks_.push_back({ByteView(set.bytes).subspan(at, bytes), MutableBytes(back_).subspan(at, bytes), {}});
  }
}

void CodecBench::Encode() {
  for (Chunk& chunk : chunks_) chunk.is_encoded = codec_.encode(chunk.raw, set_.dtype, &chunk.encoded);
}

absl::Status CodecBench::Decode() {
  const Codec& raw = *FindCodec(CodecId::kRaw);
  for (const Chunk& chunk : chunks_) {
    ESKER_RETURN_IF_ERROR(chunk.is_encoded ? codec_.decode(chunk.encoded, set_.dtype, chunk.back)
                                           : raw.decode(chunk.raw, set_.dtype, chunk.back));
  }
  return absl::OkStatus();
}

uint64_t CodecBench::StoredBytes() const {
  uint64_t bytes = 0;
  for (const Chunk& chunk : chunks_) bytes += chunk.is_encoded ? chunk.encoded.size() : chunk.raw.size();
  return bytes;
}

double ThreadCpuSeconds() {
  timespec now = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct CodecFigures {
  double size_ratio = 0;
  double encode_gbps = 0;
  double decode_gbps = 0;
};

absl::StatusOr<CodecFigures> Measure(const Codec& codec, const TensorSet& set, int passes) {
  CodecBench bench(codec, set);
  const double gigabytes = static_cast<double>(set.bytes.size()) / 1e9;
  std::vector<double> encode_gbps;
  std::vector<double> decode_gbps;
  // The first pass touches the memory and does not count.
  for (int pass = 0; pass <= passes; ++pass) {
    const double begin = ThreadCpuSeconds();
    bench.Encode();
    const double encoded = ThreadCpuSeconds();
    ESKER_RETURN_IF_ERROR(bench.Decode());
    const double decoded = ThreadCpuSeconds();
    if (!bench.IsRight()) {
      return absl::InternalError(
          absl::StrFormat("codec %s: %s (%s) came back changed", codec.name, set.name, DTypeName(set.dtype)));
    }
    if (pass == 0) continue;
    encode_gbps.push_back(gigabytes / (encoded - begin));
    decode_gbps.push_back(gigabytes / (decoded - encoded));
  }
  return CodecFigures{
      .size_ratio = static_cast<double>(bench.StoredBytes()) / static_cast<double>(set.bytes.size()),
      .encode_gbps = Median(std::move(encode_gbps)),
      .decode_gbps = Median(std::move(decode_gbps))};
}

absl::Status RunCodecBench(Cli* cli, const CodecBenchOptions& options) {
  ESKER_ASSIGN_OR_RETURN(const uint64_t size, ParseBytes(options.size));
  if (size < kMaxChunkBytes || size % kMaxChunkBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--size %s: expected whole chunks of 4MiB", options.size));
  }
  std::vector<TensorSet> sets;
  for (const std::string& file : options.files) {
    ESKER_ASSIGN_OR_RETURN(std::vector<TensorSet> loaded, LoadTensorSets(file));
    std::move(loaded.begin(), loaded.end(), std::back_inserter(sets));
  }
  if (options.files.empty()) sets = GenerateTensorSets(size);

  Json results = Json::array();
  Table table({{"tensor set"},
               {"dtype"},
               {"codec"},
               {"size", Align::kRight},
               {"encode, GB/s", Align::kRight},
               {"decode, GB/s", Align::kRight}});
  for (const TensorSet& set : sets) {
    for (const Codec& codec : AllCodecs()) {
      ESKER_ASSIGN_OR_RETURN(const CodecFigures figures, Measure(codec, set, options.passes));
      // Raw chunks are sent from where they are: there is nothing to measure.
      const bool encodes = codec.id != CodecId::kRaw;
      results.push_back({{"tensor_set", set.name},
                         {"dtype", DTypeName(set.dtype)},
                         {"codec", codec.name},
                         {"size_ratio", figures.size_ratio},
                         {"encode_gbps_per_core", encodes ? Json(figures.encode_gbps) : Json()},
                         {"decode_gbps_per_core", figures.decode_gbps}});
      table.Add({set.name, std::string(DTypeName(set.dtype)), std::string(codec.name),
                 absl::StrFormat("%.4f", figures.size_ratio),
                 encodes ? absl::StrFormat("%.2f", figures.encode_gbps) : "-",
                 absl::StrFormat("%.2f", figures.decode_gbps)});
    }
  }
  cli->result = std::move(results);
  if (!cli->json) {
    std::printf("%sOne thread, chunks of 4 MiB; the median of %d passes over each set, by processor time.\n",
                table.ToString().c_str(), options.passes);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchCodecCommand(CLI::App* bench, Cli* cli) {
  auto options = std::make_shared<CodecBenchOptions>();
  CLI::App* command = AddCommand(
      bench, cli, "codec", "Measure size and speed of the codecs, without a server", options, RunCodecBench);
  command->add_option("--size", options->size, "Of each generated tensor set, e.g. 64MiB")
      ->capture_default_str();
  command->add_option("--passes", options->passes, "Timed passes, after one that does not count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option(
          "--file", options->files,
          "Measure the tensors of this safetensors file, and no generated ones; F32 also rounded to BF16")
      ->type_name("FILE");
}

}  // namespace esker
