"""What is measured, and against what: docs/benchmarks.md. No part of an installation."""
