//! Compiles the crate again when a migration was added: `sqlx::migrate!` reads a folder, and the compiler
//! alone would only notice changes of the files it saw last time.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
