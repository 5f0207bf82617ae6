#include "tiltflow/models/model_file.h"
#include "tests/models/tiny_sit.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow {
namespace {

using test::tiny_parity_config;

}  // namespace

TEST(models_model_file, RoundTripKeepsArchitectureAndPath) {
  const test::TempDir dir;
  const auto model =
      make_sit(tiny_parity_config(), init_sit(tiny_parity_config(), RandomStreams(3)));
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

// A trainer's checkpoint gives its averaged weights unless told otherwise; sharded files give the
// same model.
TEST(models_model_file, PyTorchAndShardedFilesAreModelsToo) {
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
