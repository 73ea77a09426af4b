"""Groups that the policy makes itself: sampled, judged, and worth something."""
