// Samples of a model: every class twice, by the flow's ODE with guidance and by the SDE.
//   sampling MODEL.safetensors OUT      writes OUT-ode-heun.png and OUT-auto.png
#include <iostream>

#include "tiltflow/tiltflow.h"

using namespace tiltflow;

namespace {

SamplerConfig sampler(const std::string& name, std::int64_t steps, const FlowModel& flow) {
  SamplerConfig out;
  out.name = name;
  out.steps = steps;
  out.prediction = flow.prediction;
  return out;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: sampling MODEL OUT\n";
    return 2;
  }
  ComputeConfig compute;  // all cores
  FlowModelConfig file;
  file.file = argv[1];
  const FlowModel flow = load_flow_model(file, apply(compute));
  const std::int64_t classes = flow.model->classes();
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < 2 * classes; ++i) labels.push_back(i % classes);

  Guidance guidance;
  guidance.scale = 3;
  DrawOptions options;
  options.n = 2 * classes;
  options.keep_prediction = true;  // pictures without the noise of the SDE's last step
  const RandomStreams streams(/*seed=*/1);
  const Decoder decode = decoder_of(flow, nullptr);
  for (const SamplerConfig& s : {sampler("ode-heun", 10, flow), sampler("auto", 20, flow)}) {
    const auto field = guided(flow.model, guidance, classes);
    const Draws draws = draw(*field, s, *flow.path, flow.model->sample_shape(), streams,
                             listed_labels(labels), options);
    const at::Tensor images = decode(draws.prediction).clamp(0, 1);
    const Estimate brightness = mean_estimate(images.flatten(1).mean(1));
    const std::string file = std::string(argv[2]) + "-" + s.name + ".png";
    write_png(file, image_grid(images, static_cast<int>(classes)));
    std::cout << s.name << ", " << s.steps << " steps: brightness " << brightness.value << " +- "
              << brightness.se << ", wrote " << file << '\n';
  }
} catch (const Error& error) {
  std::cerr << error.what() << '\n';
  return exit_code(error.kind());
}
