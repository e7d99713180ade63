//! Hermetic command, registry and checkers for tests
