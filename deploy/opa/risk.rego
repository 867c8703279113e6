# Is something known of them: findings of `authz watch` that are in force, which ext-authz shows as
# input.authz.risk. Absent when there is nothing, and with it everything here.
package envoy.authz

risk := input.authz.risk

default barred := false

# To act on now: no, and no emergency changes that. Anything but a finding to review counts as one.
barred if {
	risk
	not risk.lane == "review"
}

barred_reason := concat("", ["barred by findings: ", concat(", ", risk.rules)])

default step_up_due := false

# To review: they may go on, but beyond the kinds in step_up.not_for only after they have proved anew
# who they are, as whoever stole a session cannot. Breaking the glass does not wait for that.
step_up_due if {
	risk
	not ordinary
	not glass_broken
	not stepped_up
}

ordinary if describes_service

ordinary if resource_type in data.step_up.not_for

# With one of the wanted methods (acr), and after the newest finding.
stepped_up if {
	claims.acr in data.step_up.acr_values
	is_number(claims.auth_time)
	is_number(risk.since)
	claims.auth_time >= risk.since
}

step_up_reason := concat("", ["step-up wanted for findings: ", concat(", ", risk.rules)])

step_up_challenge := concat("", [
	`Bearer error="insufficient_user_authentication", `,
	`error_description="A different authentication level is required", acr_values="`,
	concat(" ", data.step_up.acr_values),
	`", max_age="0"`,
])
