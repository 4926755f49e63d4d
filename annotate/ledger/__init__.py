"""What was asked, what came back and what it cost; each verb is all or nothing."""
