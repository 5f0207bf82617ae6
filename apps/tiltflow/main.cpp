#include "program.h"

int main(int argc, char** argv) { tiltflow::app::leave(tiltflow::app::program(argc, argv)); }
