// tiltflow cite: the papers behind what the program does.
#include <iostream>

#include "verbs.h"

namespace tiltflow::app {

void add_cite(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("cite", "BibTeX of the methods in use");
  verb->callback([&action] {
    action = [] {
      std::cout << R"(@article{domingoenrich2024adjoint,
  title={Adjoint Matching: Fine-tuning Flow and Diffusion Generative Models with Memoryless Stochastic Optimal Control},
  author={Domingo-Enrich, Carles and Drozdzal, Michal and Karrer, Brian and Chen, Ricky T. Q.},
  journal={arXiv preprint arXiv:2409.08861}, year={2024}}
@article{ma2024sit,
  title={SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers},
  author={Ma, Nanye and Goldstein, Mark and Albergo, Michael S. and Boffi, Nicholas M. and Vanden-Eijnden, Eric and Xie, Saining},
  journal={arXiv preprint arXiv:2401.08740}, year={2024}}
@inproceedings{hu2022lora,
  title={LoRA: Low-Rank Adaptation of Large Language Models},
  author={Hu, Edward J. and others}, booktitle={ICLR}, year={2022}}
@misc{tiltflow, title={tiltflow: exact reward alignment of flow and diffusion models in C++}, year={2026}}
)" << std::flush;
      return 0;
    };
  });
}

}  // namespace tiltflow::app
