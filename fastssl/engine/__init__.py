"""The engine: Run walks the stages, Step is one stage's update. It knows no method by name."""
