#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/eval/parity.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow {
namespace {
SitConfig tiny() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 2;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 2;
  c.num_heads = 2;
  c.num_classes = 3;
  c.learn_sigma = false;
  return c;
}
}  // namespace

TEST(models_sit, OutputsAndGradientsEqualTheOfficialOnes) {
  for (const auto& [name, heads] : {std::pair{"sit_a", "4"}, {"sit_b", "3"}}) {
    const std::map<std::string, std::string> args{{"num_heads", heads}};
    for (const auto attention : {AttentionBackend::kMath, AttentionBackend::kFused}) {
      const auto model = load_velocity_model(test::golden(std::string(name) + "_ema.safetensors"),
                                             args, {MatmulPrecision::kFull, attention, false});
      const auto wide = load_velocity_model(test::golden(std::string(name) + "_ema.safetensors"),
                                            args, {}, at::kDouble);
      const auto rows = compare_with_reference(
          *model.model, wide.model.get(),
          read_safetensors(test::golden(std::string(name) + "_forward.safetensors")).tensors);
      EXPECT_GE(rows.size(), 13u);
      for (const ParityRow& row : rows) {
        EXPECT_TRUE(row.ok()) << name << " " << row.tensor << " " << row.error << " at "
                              << row.worst;
      }
    }
  }
}

TEST(models_sit, ParityNoticesAWrongNetwork) {
  const auto model = load_velocity_model(test::golden("sit_a_ema.safetensors"),
                                         {{"num_heads", "2"}});  // wrong number of heads
  const auto rows = compare_with_reference(
      *model.model, nullptr, read_safetensors(test::golden("sit_a_forward.safetensors")).tensors);
  EXPECT_FALSE(rows.front().ok());
}

TEST(models_sit, HeadsMustBeGivenWhenTheyDoNotShow) {
  test::expect_error(ErrorKind::kBadFile, "number of attention heads",
                     [] { load_velocity_model(test::golden("sit_a_ema.safetensors")); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'num_heads'", [] {
    load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_head", "4"}});
  });
}

TEST(models_sit, OfficialSizes) {
  const SitConfig xl = sit_preset("SiT-XL/2");
  EXPECT_EQ(xl.hidden_size, 1152);
  EXPECT_EQ(xl.depth, 28);
  EXPECT_EQ(xl.num_heads, 16);
  for (const char* size : {"S", "B", "L", "XL"}) {
    for (const char* patch : {"2", "4", "8"}) {
      EXPECT_NO_THROW(sit_preset(std::string("SiT-") + size + "/" + patch));
    }
  }
  test::expect_error(ErrorKind::kConfig, "did you mean 'SiT-S/2'", [] { sit_preset("SiT-S2"); });
  // parameters of SiT-S/2 as published: 33 M
  SitConfig s = sit_preset("SiT-S/2");
  EXPECT_NEAR(static_cast<double>(init_sit(s, RandomStreams(0)).numel()), 33.0e6, 0.3e6);
}

TEST(models_sit, ActivationCheckpointingChangesNothing) {
  const SitConfig config = tiny();
  ParameterSet weights;
  for (const auto& [name, tensor] : init_sit(config, RandomStreams(1))) {
    weights.add(name, (name == "pos_embed" ? tensor : tensor + 0.05)
                          .to(at::kDouble)
                          .set_requires_grad(name != "pos_embed"));
  }
  const at::Tensor x = at::randn({3, 1, 8, 8}, at::kDouble);
  const at::Tensor t = at::rand({3}, at::kDouble);
  const Condition labels{at::tensor(std::vector<std::int64_t>{0, 1, 3})};
  std::vector<at::Tensor> wanted{weights.at("blocks.0.attn.qkv.weight"),
                                 weights.at("x_embedder.proj.weight"),
                                 weights.at("t_embedder.mlp.0.weight")};
  const auto gradients = [&](bool checkpointing) {
    const auto model = make_sit(config, weights, {},
                                {MatmulPrecision::kFull, AttentionBackend::kMath, checkpointing});
    return torch::autograd::grad({model->velocity(x, t, labels).square().sum()}, wanted);
  };
  const auto plain = gradients(false);
  const auto saved = gradients(true);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_LT(test::relative_error(saved[i], plain[i]), 1e-12);
  }
}

TEST(models_sit, UnconditionalEqualsTheNullClass) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({3, 1, 28, 28});
  const at::Tensor a = loaded.model->velocity(x, time_tensor(0.3, x), {});
  const at::Tensor b =
      loaded.model->velocity(x, at::full({3}, 0.3), {at::full({3}, 10, at::kLong)});
  EXPECT_LT(test::relative_error(a, b), 1e-6);
}

TEST(models_sit, LabelsOutOfRangeAreRefused) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const at::Tensor x = at::zeros({2, 1, 28, 28});
  for (const std::int64_t bad : {-1, 11}) {
    test::expect_error(ErrorKind::kFailure, "labels are 0 to 10", [&] {
      loaded.model->velocity(x, time_tensor(0.3, x),
                             {at::tensor(std::vector<std::int64_t>{3, bad})});
    });
  }
}

TEST(models_sit, Bf16StaysClose) {
  const std::map<std::string, std::string> args{{"num_heads", "3"}};
  const auto full = load_velocity_model(test::golden("sit_b_ema.safetensors"), args);
  const auto half = load_velocity_model(test::golden("sit_b_ema.safetensors"), args,
                                        {MatmulPrecision::kBf16, AttentionBackend::kFused, false});
  const ParameterSet g = read_safetensors(test::golden("sit_b_forward.safetensors")).tensors;
  const at::NoGradGuard no_grad;
  const double error =
      test::relative_error(half.model->velocity(g.at("x"), g.at("t"), {g.at("y")}), g.at("out"));
  EXPECT_LT(error, 0.03);
  EXPECT_GT(error, 1e-5);
}

TEST(models_file, RoundTripKeepsArchitectureAndPath) {
  const test::TempDir dir;
  const auto model = make_sit(tiny(), init_sit(tiny(), RandomStreams(3)));
  save_velocity_model(dir / "m.safetensors", *model, model->parameters(),
                      {{"tiltflow.path", "gvp"}});
  const LoadedModel loaded = load_velocity_model(dir / "m.safetensors");
  EXPECT_EQ(loaded.path.value, "gvp");
  EXPECT_EQ(loaded.model->spec().args, model->spec().args);
  EXPECT_EQ(loaded.model->classes(), 3);

  ParameterSet broken;  // one tensor missing, one of the wrong shape, one too many
  for (const auto& [name, tensor] : model->parameters()) {
    if (name != "blocks.1.attn.proj.bias") {
      broken.add(name, name == "final_layer.linear.bias" ? at::zeros({3}) : tensor);
    }
  }
  broken.add("extra", at::zeros({1}));
  write_safetensors(dir / "b.safetensors", broken, loaded.metadata);
  for (const char* part : {"missing: blocks.1.attn.proj.bias", "shape of final_layer.linear.bias",
                           "unexpected: extra"}) {
    test::expect_error(ErrorKind::kBadFile, part,
                       [&] { load_velocity_model(dir / "b.safetensors"); });
  }

  ParameterSet poisoned = clone(model->parameters(), false);
  poisoned.at("x_embedder.proj.bias").fill_(std::nan(""));
  write_safetensors(dir / "n.safetensors", poisoned, loaded.metadata);
  test::expect_error(ErrorKind::kNonFinite, "x_embedder.proj.bias",
                     [&] { load_velocity_model(dir / "n.safetensors"); });
}

TEST(models_mlp, LearnsNothingBeforeTraining) {
  const MlpConfig config{3, 16, 2, 4};
  const auto model = make_mlp(config, init_mlp(config, RandomStreams(0)));
  EXPECT_EQ(model->velocity(at::randn({4, 3}), at::rand({4}), {}).abs().max().item<float>(), 0);
}

TEST(models_classifier, RoundTripAndErrors) {
  const test::TempDir dir;
  ClassifierConfig config;
  config.input_size = 8;
  config.width = 4;
  config.features = 6;
  config.num_classes = 3;
  save_classifier(dir / "c.safetensors", config, init_classifier(config, RandomStreams(1)));
  const auto judge = load_classifier(dir / "c.safetensors");
  EXPECT_EQ(judge->logits(at::rand({2, 1, 8, 8})).sizes().vec(), (std::vector<std::int64_t>{2, 3}));
  test::expect_error(ErrorKind::kBadFile, "not a classifier",
                     [] { load_classifier(test::golden("sit_b_ema.safetensors")); });
}

// A trainer's checkpoint gives its averaged weights unless told otherwise; sharded files give the
// same model.
TEST(models_file, PyTorchAndShardedFilesAreModelsToo) {
  const test::TempDir dir;
  const ParameterSet ema = read_safetensors(test::golden("sit_a_ema.safetensors")).tensors;
  const ParameterSet raw = read_safetensors(test::golden("sit_a_model.safetensors")).tensors;
  write_torch_file(dir / "trainer.pt", {{"model", raw}, {"ema", ema}});
  write_torch_file(dir / "bare.pt", {{"", raw}});
  write_sharded_safetensors(dir / "sit.safetensors.index.json", ema, 1e5);
  const std::map<std::string, std::string> heads{{"num_heads", "4"}};
  const auto table = [&](const std::string& file, const std::string& section = "") {
    return load_velocity_model(dir / file, heads, {}, at::kFloat, section)
        .model->parameters()
        .at("y_embedder.embedding_table.weight");
  };
  const at::Tensor expected_ema = ema.at("y_embedder.embedding_table.weight");
  const at::Tensor expected_raw = raw.at("y_embedder.embedding_table.weight");
  EXPECT_TRUE(at::equal(table("trainer.pt"), expected_ema));
  EXPECT_TRUE(at::equal(table("trainer.pt", "model"), expected_raw));
  EXPECT_TRUE(at::equal(table("bare.pt"), expected_raw));
  EXPECT_TRUE(at::equal(table("sit.safetensors.index.json"), expected_ema));
  EXPECT_FALSE(at::equal(expected_ema, expected_raw));
  test::expect_error(ErrorKind::kBadFile, "it has: model, ema", [&] {
    try {
      table("trainer.pt", "emma");
    } catch (const Error& error) {
      fail(error.kind(), error.hint());
    }
  });
  write_file_atomic(dir / "evil.safetensors.index.json",
                    R"({"weight_map": {"a": "../evil.safetensors"}})");
  test::expect_error(ErrorKind::kBadFile, "not a plain file name",
                     [&] { table("evil.safetensors.index.json"); });
}

}  // namespace tiltflow
