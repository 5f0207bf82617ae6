// Policies that start from an earlier training.
#include "tiltflow/policy/start.h"

#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/policy/lora.h"

namespace tiltflow {
namespace {

using test::expect_error;

FlowModel load(const std::filesystem::path& file) {
  FlowModelConfig config;
  config.file = file.string();
  return load_flow_model(config);
}

at::Tensor answer(const VelocityField& field) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = RandomStreams(2).normal(Purpose::kPrior, 0, 0, 0, 3, {1, 8, 8});
  return field.velocity(x, at::full({3}, 0.4), {});
}

// Something that a training could have made.
void change(const ParameterSet& trainable) {
  const at::NoGradGuard no_grad;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : trainable) {
    tensor.add_(RandomStreams(5).normal(Purpose::kInit, 7, ++key, 0, 1, tensor.sizes())[0] * 0.1);
  }
}

// The file or folder that a finished run of this policy leaves.
std::string trained(const FlowModel& flow, const PolicyConfig& config,
                    const std::filesystem::path& out) {
  const Policy policy = make_policy(flow, config, 1);
  change(policy.trainable);
  if (config.kind == "lora") {
    write_adapters(out, policy.trainable, config.rank, config.alpha);
  } else {
    const auto model = merged_model(flow, config, policy.trainable);
    save_velocity_model(out, *model, model->parameters(), flow.metadata());
  }
  return out.string();
}

PolicyConfig kind(const std::string& name) {
  PolicyConfig config;
  config.kind = name;
  config.rank = 2;
  config.control.width = 8;
  return config;
}

TEST(policy_start, TheTunedFieldIsThatOfTheStartAndTheBaseStays) {
  for (const std::string name : {"lora", "full", "control"}) {
    const test::TempDir dir;
    test::save_small_sit(dir / "base.safetensors");
    const FlowModel flow = load(dir / "base.safetensors");
    const at::Tensor base = answer(*flow.model);
    PolicyConfig config = kind(name);
    const std::string start = trained(flow, config, dir / "start");
    const Policy earlier = make_policy(flow, config, 1);  // before its training
    EXPECT_TRUE(at::allclose(answer(*earlier.tuned), base, 1e-5, 1e-6)) << name;
    change(earlier.trainable);
    config.start = start;
    const Policy policy = make_policy(flow, config, 99);
    EXPECT_TRUE(at::equal(answer(*policy.tuned), answer(*earlier.tuned))) << name;
    EXPECT_FALSE(at::allclose(answer(*policy.tuned), base, 1e-2, 1e-3)) << name;
    EXPECT_TRUE(at::equal(answer(*policy.base), base)) << name;
    EXPECT_EQ(trainable_bytes(flow, config), policy.trainable.bytes()) << name;
  }
}

// PEFT scales by alpha / rank or alpha / sqrt(rank); the policy has its own scale.
TEST(policy_start, AnAdapterOfAnotherScaleIsTheSameFunction) {
  const test::TempDir dir;
  test::save_small_sit(dir / "base.safetensors");
  const FlowModel flow = load(dir / "base.safetensors");
  PolicyConfig config = kind("lora");
  config.alpha = 8;
  config.start = trained(flow, config, dir / "adapter");
  const at::Tensor expected = answer(*flow.model->rebind(
      merge_adapters(flow.model->parameters(), read_adapters(config.start, 1)), {}));
  config.alpha = 3;
  EXPECT_LT(test::relative_error(answer(*make_policy(flow, config, 0).tuned), expected), 1e-5);
  config.kind = "full";  // merged into the weights
  EXPECT_LT(test::relative_error(answer(*make_policy(flow, config, 0).tuned), expected), 1e-5);
}

TEST(policy_start, WhatDoesNotFitIsNamed) {
  const test::TempDir dir;
  test::save_small_sit(dir / "base.safetensors");
  const FlowModel flow = load(dir / "base.safetensors");
  const auto refused = [&](PolicyConfig config, const std::string& start, ErrorKind error,
                           const std::string& text) {
    config.start = start;
    expect_error(error, text, [&] { make_policy(flow, config, 0); });
  };
  const std::string adapter = trained(flow, kind("lora"), dir / "adapter");
  const std::string weights = trained(flow, kind("full"), dir / "weights.safetensors");
  const std::string control = trained(flow, kind("control"), dir / "control.safetensors");
  PolicyConfig config = kind("lora");
  config.rank = 4;
  refused(config, adapter, ErrorKind::kConfig, "has rank 2, policy.rank is 4");
  config = kind("lora");
  config.targets = {"*.attn.qkv"};
  refused(config, adapter, ErrorKind::kConfig, "which policy.targets leaves out");
  refused(kind("lora"), weights, ErrorKind::kConfig,
          "whole weights, which policy.kind = \"lora\" cannot start from");
  config = kind("full");
  config.trainable = {"blocks.*"};
  refused(config, weights, ErrorKind::kConfig, "which policy.trainable leaves out");
  refused(kind("control"), weights, ErrorKind::kConfig, "has no control network");
  config = kind("control");
  config.control.width = 16;
  refused(config, control, ErrorKind::kBadFile, "control.safetensors");
  refused(kind("full"), (dir / "nothing").string(), ErrorKind::kBadFile, "nothing");
  FlowModel other = flow;
  other.model = load(weights).model;
  PolicyConfig beside = kind("control");
  beside.start = control;
  expect_error(ErrorKind::kConfig, "belongs to another base",
               [&] { make_policy(other, beside, 0); });
}

}  // namespace
}  // namespace tiltflow
