//! A doc test for each code block of the README.

#![doc = include_str!("../../README.md")]
