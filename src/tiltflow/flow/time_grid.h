// Time grids 0 = t_0 < ... < t_K = 1.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

std::vector<double> uniform_grid(int steps);
// "uniform"; "cosine": (1 - cos(pi k/K))/2, dense at both ends; "shifted": t/(t + shift (1 - t)),
// shift > 1 puts more steps near the noise end. Throws kConfig for another name or K < 1.
std::vector<double> make_grid(const std::string& name, int steps, double shift = 1.0);

}  // namespace tiltflow
