// Compiled with what tests/CMakeLists.txt precompiles for the tests: nothing more.
