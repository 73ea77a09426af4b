"""The page where people judge: routes and templates only. What is judged and kept lives in `accord.feedback.people`."""
