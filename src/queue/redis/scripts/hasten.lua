-- hasten(longest delay ms, limit) -> n: what is due later than any delay could make it is due now:
-- the clock was ahead when it was put off, and has gone back since.
local longest, limit = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
check_types()
open_for_writing()
local beyond, n = '(' .. whole(now + longest), 0
local function hasten(key, due)
  local members, moved = due_between(key, beyond, limit), {}
  for i, one in ipairs(members) do
    moved[2 * i - 1], moved[2 * i] = (key == LANES or is_id(one)) and due or NEVER, one
  end
  all('ZADD', key, moved)
  n = n + #members
end
hasten(RETRY, now)
hasten(LANES, due_at(now))
return n
