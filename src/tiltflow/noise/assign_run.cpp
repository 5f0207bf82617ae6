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

void pack(const Generator& generator, const std::vector<Target>& targets,
          const std::vector<AssignStore>& stores, const AssignRunOptions& o,
          const RandomStreams& streams, AssignSummary& summary) {
  std::vector<at::Tensor> images, base, noise;
  std::vector<std::int64_t> labels, ids;
  std::vector<double> losses, starts;
  std::string manifest, failures;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    for (const AssignStore& each : stores) {
      const auto found = each.results().find(static_cast<std::int64_t>(i));
      if (found == each.results().end()) continue;
      const StoredResult& r = found->second;
      if (r.failed) {
        failures += Json{{"id", targets[i].id},
                         {"name", targets[i].name},
                         {"kind", r.kind},
                         {"message", r.message}}
                        .dump() +
                    "\n";
        ++summary.failed;
        continue;
      }
      const at::Tensor both = each.row(static_cast<std::int64_t>(i));
      base.push_back(both[0]);
      noise.push_back(both[1]);
      labels.push_back(r.label);
      ids.push_back(targets[i].id);
      losses.push_back(r.loss);
      starts.push_back(r.start_loss);
      images.push_back(bytes_of_state(read_target(targets[i], generator).image));
      manifest += Json{{"id", targets[i].id},
                       {"name", targets[i].name},
                       {"label", r.label},
                       {"loss", json_number(r.loss)},
                       {"start_loss", json_number(r.start_loss)}}
                      .dump() +
                  "\n";
    }
  }
  write_file_atomic(o.out / "manifest.jsonl", manifest);
  write_file_atomic(o.out / "failures.jsonl", failures);
  summary.assigned = static_cast<std::int64_t>(ids.size());
  Json json{
      {"targets", summary.targets}, {"assigned", summary.assigned}, {"failed", summary.failed}};
  if (summary.assigned > 0) {
    AssignedSet set{at::stack(noise),           at::stack(base),
                    at::stack(images),          at::tensor(labels, at::kLong),
                    at::tensor(ids, at::kLong), at::tensor(losses, at::kDouble)};
    write_assigned(o.out / "assigned.safetensors", set);
    summary.loss = set.loss.mean().item<double>();
    summary.start_loss = at::tensor(starts, at::kDouble).mean().item<double>();
    summary.loss_se = summary.assigned > 1 ? set.loss.std().item<double>() /
                                                 std::sqrt(static_cast<double>(summary.assigned))
                                           : 0;
    json["loss"] = summary.loss;
    json["loss_se"] = summary.loss_se;
    json["start_loss"] = summary.start_loss;
    const std::int64_t shown = std::min<std::int64_t>(32, summary.assigned);
    const at::Tensor made =
        reconstruct(generator, set.noise.narrow(0, 0, shown), set.labels.narrow(0, 0, shown));
    const at::Tensor wanted = state_of_bytes(set.images.narrow(0, 0, shown));
    if (is_picture(generator.sample_shape())) {
      const at::Tensor both =
          at::stack({wanted, made}, 1)
              .flatten(0, 1);  // target, its reconstruction, the next target, ...
      write_png(o.out / "pairs.png", image_grid((both + 1) / 2, 16), {{"Software", "tiltflow"}});
    }
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
  at::Tensor transport;
  double sum = 0;
  std::int64_t done = 0;
  for (const auto& [position, result] : store.results()) {
    if (!result.failed) {
      sum += result.loss;
      ++done;
    }
  }
  for (std::int64_t c = o.shard; c < chunks; c += o.shards) {
    std::vector<std::int64_t> open_positions;
    for (std::int64_t i = c * config.chunk; i < std::min(summary.targets, (c + 1) * config.chunk);
         ++i) {
      if (!store.done(i) && (o.retry_failed || !store.failed(i))) open_positions.push_back(i);
    }
    if (open_positions.empty()) continue;
    const Chunk chunk = read_chunk(targets, open_positions, generator, store);
    if (!chunk.positions.empty()) {
      at::Tensor base, warm;
      if (o.warm) {
        base = rows_of(*o.warm, o.warm->base, chunk.targets.ids);
        warm = rows_of(*o.warm, o.warm->noise, chunk.targets.ids);
      } else if (config.init != "random") {
        if (!transport.defined()) transport = transported(generator, assigner, targets, o.round);
        base = transport.index_select(0, at::tensor(chunk.positions, at::kLong));
      }
      const AssignResult result = assigner.assign(chunk.targets, o.round, base, warm);
      summary.forwards += result.forwards;
      summary.backwards += result.backwards;
      for (std::size_t k = 0; k < chunk.positions.size(); ++k) {
        const auto i = static_cast<std::int64_t>(k);
        StoredResult one;
        one.loss = result.loss[i].item<double>();
        one.start_loss = result.start_loss[i].item<double>();
        if (chunk.targets.labels.defined()) {
          one.label = chunk.targets.labels[i].item<std::int64_t>();
        }
        if (!std::isfinite(one.loss)) {
          store.add_failure(chunk.positions[k], "non-finite", "the loss is never finite");
          continue;
        }
        store.add(chunk.positions[k], one, result.base[i], result.noise[i]);
        sum += one.loss;
        ++done;
      }
    }
    store.sync();
    if (o.progress) {
      o.progress(static_cast<std::int64_t>(store.results().size()),
                 done > 0 ? sum / static_cast<double>(done) : 0);
    }
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
