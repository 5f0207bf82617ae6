#include "tiltflow/noise/assign_run.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/noise/store.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string lane(std::int64_t shard, std::int64_t shards) {
  return shards == 1 ? "" : cat("-", shard, "-of-", shards);
}

// The readable targets at these positions; the others become failures of the store.
struct Chunk {
  std::vector<std::int64_t> positions;
  AssignTargets targets;
};
Chunk read_chunk(const std::vector<Target>& targets, const std::vector<std::int64_t>& positions,
                 const Generator& generator, AssignStore& store) {
  Chunk out;
  std::vector<at::Tensor> images;
  std::vector<std::int64_t> labels, ids;
  for (const std::int64_t position : positions) {
    const Target& target = targets[static_cast<std::size_t>(position)];
    try {
      const CheckedTarget one = read_target(target, generator);
      images.push_back(one.image);
      labels.push_back(one.label);
      ids.push_back(target.id);
      out.positions.push_back(position);
    } catch (const Error& error) {
      store.add_failure(position, error.kind() == ErrorKind::kNonFinite ? "non-finite" : "bad-file",
                        error.what());
    }
  }
  if (!images.empty()) {
    out.targets = {at::stack(images),
                   generator.classes() > 0 ? at::tensor(labels, at::kLong) : at::Tensor(),
                   at::tensor(ids, at::kLong)};
  }
  return out;
}

// The rows of `set` with these ids, in their order. Throws kBadFile when one is missing.
at::Tensor rows_of(const AssignedSet& set, const at::Tensor& tensor, const at::Tensor& ids) {
  std::map<std::int64_t, std::int64_t> where;
  for (std::int64_t i = 0; i < set.size(); ++i) where[set.ids[i].item<std::int64_t>()] = i;
  std::vector<std::int64_t> index;
  for (std::int64_t i = 0; i < ids.size(0); ++i) {
    const auto found = where.find(ids[i].item<std::int64_t>());
    if (found == where.end()) {
      fail(ErrorKind::kBadFile, cat("no earlier noise for target ", ids[i].item<std::int64_t>()));
    }
    index.push_back(found->second);
  }
  return tensor.index_select(0, at::tensor(index, at::kLong));
}

// Base noises by optimal transport for all readable targets; positions of the others are left zero.
at::Tensor transported(const Generator& generator, const Assigner& assigner,
                       const std::vector<Target>& targets, std::uint32_t round) {
  std::vector<at::Tensor> images;
  std::vector<std::int64_t> labels, ids, positions;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    try {
      const CheckedTarget one = read_target(targets[i], generator);
      images.push_back(one.image);
      labels.push_back(one.label);
      ids.push_back(targets[i].id);
      positions.push_back(static_cast<std::int64_t>(i));
    } catch (const Error&) {  // becomes a failure when its chunk comes
    }
  }
  at::Tensor out = at::zeros({static_cast<std::int64_t>(targets.size()), noise_size(generator)});
  if (images.empty()) return out;
  const AssignTargets all{at::stack(images),
                          generator.classes() > 0 ? at::tensor(labels, at::kLong) : at::Tensor(),
                          at::tensor(ids, at::kLong)};
  out.index_copy_(0, at::tensor(positions, at::kLong), assigner.transport(all, round));
  return out;
}

at::Tensor reconstruct(const Generator& generator, const at::Tensor& noise,
                       const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  return generate_rows(generator, noise, labels);
}

// The rows of all stores in the order of the targets.
struct PackedRows {
  std::vector<at::Tensor> images, base, noise;
  std::vector<std::int64_t> labels, ids;
  std::vector<double> losses, starts;
  std::string manifest, failures;
  std::int64_t failed = 0;

  void add_failure(const Target& target, const StoredResult& r) {
    failures +=
        Json{{"id", target.id}, {"name", target.name}, {"kind", r.kind}, {"message", r.message}}
            .dump() +
        "\n";
    ++failed;
  }
  void add(const Target& target, const StoredResult& r, const at::Tensor& row,
           const Generator& generator) {
    base.push_back(row[0]);
    noise.push_back(row[1]);
    labels.push_back(r.label);
    ids.push_back(target.id);
    losses.push_back(r.loss);
    starts.push_back(r.start_loss);
    images.push_back(bytes_of_state(read_target(target, generator).image));
    manifest += Json{{"id", target.id},
                     {"name", target.name},
                     {"label", r.label},
                     {"loss", json_number(r.loss)},
                     {"start_loss", json_number(r.start_loss)}}
                    .dump() +
                "\n";
  }
  AssignedSet set() const {
    return {at::stack(noise),           at::stack(base),
            at::stack(images),          at::tensor(labels, at::kLong),
            at::tensor(ids, at::kLong), at::tensor(losses, at::kDouble)};
  }
};

PackedRows packed_rows(const Generator& generator, const std::vector<Target>& targets,
                       const std::vector<AssignStore>& stores) {
  PackedRows out;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    for (const AssignStore& each : stores) {
      const auto position = static_cast<std::int64_t>(i);
      const auto found = each.results().find(position);
      if (found == each.results().end()) continue;
      if (found->second.failed) {
        out.add_failure(targets[i], found->second);
      } else {
        out.add(targets[i], found->second, each.row(position), generator);
      }
    }
  }
  return out;
}

// Targets beside their reconstructions: target, its reconstruction, the next target, ...
void write_pairs_picture(const fs::path& out, const Generator& generator, const AssignedSet& set) {
  const std::int64_t shown = std::min<std::int64_t>(32, set.size());
  const at::Tensor made =
      reconstruct(generator, set.noise.narrow(0, 0, shown), set.labels.narrow(0, 0, shown));
  const at::Tensor wanted = state_of_bytes(set.images.narrow(0, 0, shown));
  if (!is_picture(generator.sample_shape())) return;
  const at::Tensor both = at::stack({wanted, made}, 1).flatten(0, 1);
  write_png(out / "pairs.png", image_grid((both + 1) / 2, 16), {{"Software", "tiltflow"}});
}

void pack(const Generator& generator, const std::vector<Target>& targets,
          const std::vector<AssignStore>& stores, const AssignRunOptions& o,
          const RandomStreams& streams, AssignSummary& summary) {
  const PackedRows rows = packed_rows(generator, targets, stores);
  write_file_atomic(o.out / "manifest.jsonl", rows.manifest);
  write_file_atomic(o.out / "failures.jsonl", rows.failures);
  summary.failed = rows.failed;
  summary.assigned = static_cast<std::int64_t>(rows.ids.size());
  Json json{
      {"targets", summary.targets}, {"assigned", summary.assigned}, {"failed", summary.failed}};
  if (summary.assigned > 0) {
    const AssignedSet set = rows.set();
    write_assigned(o.out / "assigned.safetensors", set);
    summary.loss = set.loss.mean().item<double>();
    summary.start_loss = at::tensor(rows.starts, at::kDouble).mean().item<double>();
    summary.loss_se = summary.assigned > 1 ? set.loss.std().item<double>() /
                                                 std::sqrt(static_cast<double>(summary.assigned))
                                           : 0;
    json["loss"] = summary.loss;
    json["loss_se"] = summary.loss_se;
    json["start_loss"] = summary.start_loss;
    write_pairs_picture(o.out, generator, set);
    if (summary.assigned >= 8) {
      summary.noise = noise_report(set.noise, streams);
      write_file_atomic(
          o.out / "noise.json",
          Json{{"assigned", to_json(summary.noise)},
               {"base", to_json(noise_report(set.base, streams))},
               {"compare", compare(patch_statistics(set.base), patch_statistics(set.noise))}}
                  .dump(1) +
              "\n");
      json["noise"] = summary.noise.verdict;
    }
  }
  write_file_atomic(o.out / "summary.json", json.dump(1) + "\n");
}

}  // namespace

AssignTargets AssignedSet::targets() const { return {state_of_bytes(images), labels, ids}; }

void write_assigned(const fs::path& file, const AssignedSet& s) {
  ParameterSet tensors;
  tensors.add("noise", s.noise);
  tensors.add("base", s.base);
  tensors.add("target", s.images);
  tensors.add("label", s.labels);
  tensors.add("id", s.ids);
  tensors.add("loss", s.loss);
  write_safetensors(file, tensors, {{"tiltflow.family", "assigned-noise"}});
}

AssignedSet read_assigned(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? path / "assigned.safetensors" : path;
  const ParameterSet t = read_safetensors(file).tensors;
  for (const char* name : {"noise", "base", "target", "label", "id", "loss"}) {
    if (!t.contains(name)) {
      fail(ErrorKind::kBadFile,
           cat(file.string(), ": no assigned noise (tensor '", name, "' is missing)"),
           "make it with `tiltflow assign`");
    }
  }
  AssignedSet s{t.at("noise"), t.at("base"), t.at("target"),
                t.at("label"), t.at("id"),   t.at("loss")};
  const std::int64_t n = s.noise.dim() == 2 ? s.noise.size(0) : 0;
  const bool fits =
      n > 0 && s.noise.scalar_type() == at::kFloat && s.base.sizes() == s.noise.sizes() &&
      s.base.scalar_type() == at::kFloat && s.images.dim() >= 2 && s.images.size(0) == n &&
      s.images.scalar_type() == at::kByte && s.labels.sizes() == at::IntArrayRef({n}) &&
      s.labels.scalar_type() == at::kLong && s.ids.sizes() == at::IntArrayRef({n}) &&
      s.ids.scalar_type() == at::kLong && s.loss.sizes() == at::IntArrayRef({n}) &&
      s.loss.scalar_type() == at::kDouble;
  if (!fits) fail(ErrorKind::kBadFile, cat(file.string(), ": its tensors do not fit each other"));
  if (!at::isfinite(s.noise).all().item<bool>()) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": noise that is not finite"));
  }
  return s;
}

AssignTargets read_targets(const TargetsConfig& config, const Generator& generator) {
  std::vector<at::Tensor> images;
  std::vector<std::int64_t> labels, ids;
  for (const Target& target : list_targets(config)) {
    const CheckedTarget one = read_target(target, generator);
    images.push_back(one.image);
    labels.push_back(one.label);
    ids.push_back(target.id);
  }
  return {at::stack(images), generator.classes() > 0 ? at::tensor(labels, at::kLong) : at::Tensor(),
          at::tensor(ids, at::kLong)};
}

namespace {

// The search of one shard, chunk by chunk into its store.
class ShardSearch {
 public:
  ShardSearch(const Generator& generator, const Assigner& assigner, const AssignConfig& config,
              const std::vector<Target>& targets, const AssignRunOptions& options,
              AssignStore& store)
      : generator_(generator),
        assigner_(assigner),
        config_(config),
        targets_(targets),
        options_(options),
        store_(store) {
    for (const auto& [position, result] : store.results()) {
      if (!result.failed) count(result.loss);
    }
  }

  // Positions of a chunk that have no result yet.
  std::vector<std::int64_t> open_positions(std::int64_t chunk) const {
    const auto targets = static_cast<std::int64_t>(targets_.size());
    std::vector<std::int64_t> out;
    for (std::int64_t i = chunk * config_.chunk; i < std::min(targets, (chunk + 1) * config_.chunk);
         ++i) {
      if (!store_.done(i) && (options_.retry_failed || !store_.failed(i))) out.push_back(i);
    }
    return out;
  }

  void search(const std::vector<std::int64_t>& positions, AssignSummary& summary) {
    const Chunk chunk = read_chunk(targets_, positions, generator_, store_);
    if (!chunk.positions.empty()) {
      const AssignResult result = assign(chunk);
      summary.forwards += result.forwards;
      summary.backwards += result.backwards;
      store(chunk, result);
    }
    store_.sync();
    if (options_.progress) {
      options_.progress(static_cast<std::int64_t>(store_.results().size()),
                        done_ > 0 ? sum_ / static_cast<double>(done_) : 0);
    }
  }

 private:
  void count(double loss) {
    sum_ += loss;
    ++done_;
  }

  AssignResult assign(const Chunk& chunk) {
    at::Tensor base;
    at::Tensor warm;
    if (options_.warm) {
      base = rows_of(*options_.warm, options_.warm->base, chunk.targets.ids);
      warm = rows_of(*options_.warm, options_.warm->noise, chunk.targets.ids);
    } else if (config_.init != "random") {
      if (!transport_.defined()) {
        transport_ = transported(generator_, assigner_, targets_, options_.round);
      }
      base = transport_.index_select(0, at::tensor(chunk.positions, at::kLong));
    }
    return assigner_.assign(chunk.targets, options_.round, base, warm);
  }

  void store(const Chunk& chunk, const AssignResult& result) {
    for (std::size_t k = 0; k < chunk.positions.size(); ++k) {
      const auto i = static_cast<std::int64_t>(k);
      StoredResult one;
      one.loss = result.loss[i].item<double>();
      one.start_loss = result.start_loss[i].item<double>();
      if (chunk.targets.labels.defined()) {
        one.label = chunk.targets.labels[i].item<std::int64_t>();
      }
      if (!std::isfinite(one.loss)) {
        store_.add_failure(chunk.positions[k], "non-finite", "the loss is never finite");
        continue;
      }
      store_.add(chunk.positions[k], one, result.base[i], result.noise[i]);
      count(one.loss);
    }
  }

  const Generator& generator_;
  const Assigner& assigner_;
  const AssignConfig& config_;
  const std::vector<Target>& targets_;
  const AssignRunOptions& options_;
  AssignStore& store_;
  at::Tensor transport_;   // base noises of all targets, made when the first chunk asks
  double sum_ = 0;         // of the losses so far
  std::int64_t done_ = 0;  // targets with a loss
};

}  // namespace

AssignSummary run_assignment(const Generator& generator, const Assigner& assigner,
                             const AssignConfig& config, const std::vector<Target>& targets,
                             const RandomStreams& streams, const AssignRunOptions& o) {
  const FolderClaim claim(o.out, lane(o.shard, o.shards));
  AssignSummary summary;
  summary.targets = static_cast<std::int64_t>(targets.size());
  const std::int64_t size = noise_size(generator);
  const std::int64_t chunks = (summary.targets + config.chunk - 1) / config.chunk;
  const auto open = [&](std::int64_t shard) {
    return AssignStore(o.out / "store", o.start, size, summary.targets, lane(shard, o.shards));
  };
  AssignStore store = open(o.shard);
  ShardSearch search(generator, assigner, config, targets, o, store);
  for (std::int64_t c = o.shard; c < chunks; c += o.shards) {
    const std::vector<std::int64_t> positions = search.open_positions(c);
    if (positions.empty()) continue;
    search.search(positions, summary);
    check_stop();
  }
  std::vector<AssignStore> stores;
  std::size_t tried = 0;
  for (std::int64_t shard = 0; shard < o.shards; ++shard) {
    stores.push_back(open(shard));
    tried += stores.back().results().size();
  }
  summary.complete = tried == targets.size();
  if (summary.complete) pack(generator, targets, stores, o, streams, summary);
  return summary;
}

}  // namespace tiltflow
