//! Graph to results: cache keys, scheduling
