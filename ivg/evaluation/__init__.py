"""What an experiment is judged by: statistics, text measures, distance from the base, figures, reports."""
