//! Results to images in every output form
