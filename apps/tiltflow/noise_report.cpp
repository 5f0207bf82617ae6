// tiltflow noise-report: is this noise N(0, I)? Of a file, or of fresh noise behind a fixed
// orthogonal map.
#include <iostream>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/noise/diagnostics.h"
#include "tiltflow/noise/patches.h"
#include "tiltflow/report/html.h"
#include "tiltflow/tensor/aten.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct NoiseReportOptions {
  std::string file;
  std::string tensor = "noise";
  std::string map = "expm";
  std::string adapter;
  std::string out;
  std::int64_t channels = 4;
  std::int64_t patch = 0;
  std::int64_t n = 65536;
  std::int64_t seed = 42;
  double scale = 0.1;
  bool json = false;
};

at::Tensor rows_of(const at::Tensor& noise, std::int64_t patch, const std::string& where) {
  if (!noise.is_floating_point() || noise.dim() < 2) {
    fail(ErrorKind::kBadFile, where + ": noise must be numbers [N, ...]");
  }
  if (patch > 0 && noise.dim() != 4) fail(ErrorKind::kUsage, "--patch needs noise [N, C, H, W]");
  return (patch > 0 ? to_patches(noise, patch).flatten(0, 1) : noise.flatten(1)).to(at::kFloat);
}

Series histogram(const std::string& name, const at::Tensor& values, double low, double high,
                 int bins = 40) {
  Series s{name};
  s.steps = true;
  const at::Tensor counts = at::histc(values.to(at::kFloat), bins, low, high);
  for (int i = 0; i <= bins; ++i) s.x.push_back(low + (high - low) * i / bins);
  for (int i = 0; i < bins; ++i) {
    s.y.push_back(counts[i].item<double>() / static_cast<double>(values.numel()) * bins /
                  (high - low));
  }
  return s;
}

std::string charts(const at::Tensor& rows, const NoiseReport& r) {
  const auto line = [](const std::string& name, const at::Tensor& v) {
    Series s{name};
    for (std::int64_t i = 0; i < v.size(0); ++i) {
      s.x.push_back(static_cast<double>(i));
      s.y.push_back(v[i].item<double>());
    }
    return s;
  };
  const at::Tensor lengths = rows.norm(2, {1});
  Series normal{"N(0, 1)"};
  for (double x = -4; x <= 4.01; x += 0.1) {
    normal.x.push_back(x);
    normal.y.push_back(std::exp(-x * x / 2) / std::sqrt(2 * M_PI));
  }
  const double last = static_cast<double>(r.statistics.dim - 1);
  const Series low{"lower edge of independent noise", {0, last}, {r.spectrum_low, r.spectrum_low}};
  const Series high{
      "upper edge of independent noise", {0, last}, {r.spectrum_high, r.spectrum_high}};
  const double shortest = lengths.min().item<double>();
  const double longest = lengths.max().item<double>() + 1e-6;
  return chart_figures(
      {{"All numbers",
        {"value"},
        {"density", "per unit of value"},
        {histogram("noise", rows.flatten(), -4, 4), normal}},
       {"Lengths of rows",
        {"length"},
        {"density", "per unit of length"},
        {histogram("", lengths, shortest, longest)}},
       {"Mean of each dimension", {"dimension"}, {"mean"}, {line("", r.statistics.mean_per_dim)}},
       {"Variance of each dimension",
        {"dimension"},
        {"variance"},
        {line("", r.statistics.var_per_dim)}},
       {"Covariance spectrum",
        {"number of the eigenvalue"},
        {"eigenvalue"},
        {line("noise", r.statistics.eigenvalues), low, high}}});
}

int report(const NoiseReportOptions& o) {
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  at::Tensor rows;
  nlohmann::ordered_json json;
  if (!o.file.empty()) {
    const ParameterSet tensors = read_tensors(o.file).tensors;
    std::vector<std::string> some = tensors.names();
    if (some.size() > 8) some.resize(8);
    if (!tensors.contains(o.tensor)) {
      fail(ErrorKind::kBadFile,
           cat(o.file, " has no tensor '", o.tensor, "'", did_you_mean(o.tensor, tensors.names())),
           cat("--tensor names it; it has ", join(some, ", "),
               tensors.size() > some.size() ? ", ..." : ""));
    }
    rows = rows_of(tensors.at(o.tensor), o.patch, o.file);
  } else {
    const std::int64_t p = o.patch > 0 ? o.patch : 2;
    const std::int64_t d = o.channels * p * p;
    const auto map = make_orthogonal_map({o.map}, d);
    at::Tensor raw = streams.normal(Purpose::kInit, 1, 0, 0, 1, map->parameter_shape()) * o.scale;
    if (!o.adapter.empty()) {
      const ParameterSet tensors = read_tensors(o.adapter).tensors;
      if (!tensors.contains("raw") || tensors.at("raw").sizes() != raw.sizes().slice(1)) {
        fail(ErrorKind::kBadFile,
             cat(o.adapter, ": expected a tensor 'raw' ", shape_text(raw.sizes().slice(1))),
             "--map, --channels and --patch must fit it");
      }
      raw = tensors.at("raw").to(at::kFloat).unsqueeze(0);
    }
    const at::Tensor base = streams.normal(Purpose::kPrior, 0, 0, 0, o.n, {d});
    rows = map->apply(raw, base.unsqueeze(0))[0];
    const Orthogonality q = orthogonality(map->matrix(raw)[0]);
    json["orthogonal_map"] = {{"orthogonality_fro", q.error},
                              {"sv_min", q.sv_min},
                              {"sv_max", q.sv_max},
                              {"sv_mean", q.sv_mean},
                              {"det_abs", q.det_abs}};
    json["base"] = to_json(patch_statistics(base));
    json["transformed"] = to_json(patch_statistics(rows));
    json["compare"] = compare(patch_statistics(base), patch_statistics(rows));
  }
  const NoiseReport r = noise_report(rows, streams);
  json.update(to_json(r));
  std::cerr << to_text(r);
  if (!o.out.empty()) {
    make_directories(o.out);
    write_file_atomic(std::filesystem::path(o.out) / "noise.json", json.dump(1) + "\n");
    write_file_atomic(std::filesystem::path(o.out) / "noise.html",
                      html_page("tiltflow noise-report",
                                cat("<h1>", html_escape(r.verdict), "</h1><pre>",
                                    html_escape(to_text(r)), "</pre>", charts(rows, r))));
    log_info(cat("wrote noise.json and noise.html to ", o.out));
  }
  if (o.json) std::cout << json.dump() << std::endl;
  return 0;
}

}  // namespace

void add_noise_report(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "noise-report",
      "is this noise N(0, I)? tests, spectrum and pictures of a file or of a fixed orthogonal map");
  auto o = std::make_shared<NoiseReportOptions>();
  auto* file = verb->add_option(
      "file", o->file,
      "file with noise, e.g. assigned.safetensors; left out: fresh noise behind a map");
  verb->add_option("--tensor", o->tensor, "which tensor, [N, ...]")
      ->capture_default_str()
      ->needs(file);
  verb->add_option("--patch", o->patch,
                   "rows are patches of this side (noise [N, C, H, W]); of the map without a file, "
                   "default 2")
      ->check(CLI::PositiveNumber);
  verb->add_option("--map", o->map, "without a file: kind of the map")
      ->check(CLI::IsMember(orthogonal_kinds()))
      ->capture_default_str()
      ->excludes(file);
  verb->add_option("--channels", o->channels, "without a file: channels of a patch")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->excludes(file);
  verb->add_option("--n", o->n, "without a file: rows")
      ->check(CLI::Range(8, 10'000'000))
      ->capture_default_str()
      ->excludes(file);
  verb->add_option("--scale", o->scale, "without a file: deviation of the map's parameters")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->excludes(file);
  verb->add_option("--adapter", o->adapter,
                   "without a file: take the parameters from tensor 'raw' of this file")
      ->excludes(file);
  verb->add_option("--seed", o->seed, "seed")->check(CLI::NonNegativeNumber)->capture_default_str();
  verb->add_option("--out", o->out, "folder for noise.json and noise.html");
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->footer(
      "Examples:\n  tiltflow noise-report runs/assign/assigned.safetensors --out "
      "runs/assign-noise\n  tiltflow noise-report --map cayley --patch 4");
  verb->callback([=, &action] { action = [o] { return report(*o); }; });
}

}  // namespace tiltflow::app
