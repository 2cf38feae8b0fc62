#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| insula_fuzz::run("guest-sockets", data));
