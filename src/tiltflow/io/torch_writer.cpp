// Writing PyTorch checkpoints: the zip container, tensors and plain values.
#include <bit>
#include <limits>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/io/torch_types.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// Emits the few opcodes that a dict of tensors needs, protocol 2.
class Writer {
 public:
  std::string out{"\x80\x02", 2};
  void text(std::string_view s) {
    out += 'X';
    number(s.size(), 4);
    out += s;
  }
  void integer(std::int64_t value) {
    if (value >= 0 && value < 256) {
      out += 'K';
      number(static_cast<std::uint64_t>(value), 1);
    } else if (value >= 0 && value < 65536) {
      out += 'M';
      number(static_cast<std::uint64_t>(value), 2);
    } else if (value >= std::numeric_limits<std::int32_t>::min() &&
               value <= std::numeric_limits<std::int32_t>::max()) {
      out += 'J';
      number(static_cast<std::uint64_t>(value), 4);
    } else {
      out += "\x8a\x08";
      number(static_cast<std::uint64_t>(value), 8);
    }
  }
  void integers(at::IntArrayRef values) {
    out += '(';
    for (const std::int64_t value : values) integer(value);
    out += 't';
  }
  // As Python would write it: True, 4, 0.5, else text.
  void value(const PlainValue& value) {
    if (const auto* boolean = std::get_if<bool>(&value)) {
      out += *boolean ? '\x88' : '\x89';
    } else if (const auto* whole = std::get_if<std::int64_t>(&value)) {
      integer(*whole);
    } else if (const auto* real = std::get_if<double>(&value)) {
      floating(*real);
    } else {
      text(std::get<std::string>(value));
    }
  }
  void floating(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    out += 'G';
    for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(bits >> shift & 0xff);
  }
  void global(std::string_view module, std::string_view name) {
    out += 'c';
    out += module;
    out += '\n';
    out += name;
    out += '\n';
  }
  void number(std::uint64_t value, int width) {
    for (int i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  }
};

// An OrderedDict of tensors; their contiguous copies are added to `kept`, one storage each.
void write_tensors(Writer& w, const ParameterSet& tensors, std::vector<at::Tensor>& kept) {
  w.global("collections", "OrderedDict");
  w.out += ")R(";
  for (const auto& [name, original] : tensors) {
    const at::Tensor tensor = original.detach().to(at::kCPU).contiguous();
    const TorchType* type = torch_type(tensor.scalar_type());
    if (!type) {
      fail(ErrorKind::kFailure,
           cat("tensor '", name, "' has a type that a PyTorch file cannot hold here"));
    }
    w.text(name);
    w.global("torch._utils", "_rebuild_tensor_v2");
    w.out += "((";
    w.text("storage");
    w.global("torch", cat(type->storage, "Storage"));
    w.text(std::to_string(kept.size()));
    w.text("cpu");
    w.integer(tensor.numel());
    w.out += "tQ";
    w.integer(0);
    w.integers(tensor.sizes());
    w.integers(tensor.strides());
    w.out += '\x89';
    w.global("collections", "OrderedDict");
    w.out += ")RtR";
    kept.push_back(tensor);
  }
  w.out += 'u';
}

// The items of a dict that is open.
void write_plain_dicts(Writer& w, const PlainDicts& dicts) {
  for (const auto& [name, values] : dicts) {
    w.text(name);
    w.out += "}(";
    for (const auto& [key, value] : values) {
      w.text(key);
      w.value(value);
    }
    w.out += 'u';
  }
}

}  // namespace

void write_torch_file(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, ParameterSet>>& sections,
                      const PlainDicts& beside) {
  Writer w;
  std::vector<at::Tensor> kept;
  if (sections.size() == 1 && sections[0].first.empty()) {
    write_tensors(w, sections[0].second, kept);
    if (!beside.empty()) {
      w.out += "}(";
      write_plain_dicts(w, beside);
      w.out += "ub";
    }
  } else {
    w.out += "}(";
    for (const auto& [name, tensors] : sections) {
      w.text(name);
      write_tensors(w, tensors, kept);
    }
    write_plain_dicts(w, beside);
    w.out += 'u';
  }
  w.out += '.';
  std::vector<ZipPiece> pieces{{"archive/data.pkl", w.out}, {"archive/byteorder", "little"}};
  for (std::size_t i = 0; i < kept.size(); ++i) {
    pieces.push_back({cat("archive/data/", i),
                      {static_cast<const char*>(kept[i].data_ptr()), kept[i].nbytes()}});
  }
  pieces.push_back({"archive/version", "3\n"});
  write_zip(path, pieces);
}

}  // namespace tiltflow
