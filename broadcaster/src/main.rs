//! The broadcaster as a process of its own; `pulsestream broadcaster` runs the same.

use std::process::ExitCode;

use pulsestream_shared::auth::Keyring;
use pulsestream_shared::process;

fn main() -> ExitCode {
    process::main(
        pulsestream_broadcaster::ROLE,
        |server| server.broadcaster_port,
        async |context| {
            let keyring = Keyring::open(&context).await?;
            pulsestream_broadcaster::build(context, keyring).await
        },
    )
}
