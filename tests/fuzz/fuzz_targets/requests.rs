#![no_main]

fuzz::target!(vmm_rest::fuzz::requests);
