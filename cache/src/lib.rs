//! The store: blobs, trees, index, records

pub mod tree;
