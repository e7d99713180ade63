//! Distribution client: resolve, pull, push
