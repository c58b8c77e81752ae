//! Prints what the store costs on this machine. Argument: a directory on the disk to measure.

#[expect(clippy::print_stdout, reason = "printing is its job")]
fn main() {
    let directory = std::env::args().nth(1).expect("the argument is a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be built");
    match runtime.block_on(store::bench::run(std::path::Path::new(&directory))) {
        Ok(measures) => measures
            .iter()
            .for_each(|measure| println!("{:>12.1} {:<10} {}", measure.value, measure.unit, measure.name)),
        Err(error) => println!("{}", base::errors::chain(&error)),
    }
}
