-- forget(age ms, limit, latest) -> n: dead letters older than that are gone for good. None once it is later
-- than `latest`: then the clock was set, and ages are nonsense.
local age, limit = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
if now > assert(tonumber(ARGV[3])) then return 0 end
check_types()
-- What has no time of death that could be is kept, and so is what is no message. What died before it was claimed
-- did so by a clock that was behind: it dies now.
local A_MINUTE = 60000
local ids, rising, looked_at = {}, {}, 0
while #ids < limit and looked_at < 2 * limit do
  local found = redis.call('ZRANGEBYSCORE', DEAD, FIRST_TIME, now - age, 'WITHSCORES', 'LIMIT', looked_at, limit - #ids)
  for i = 1, #found, 2 do
    local id, died = found[i], tonumber(found[i + 1])
    if is_id(id) then
      local claimed = claimed_at(id)
      if claimed <= now and died < claimed - A_MINUTE then rising[#rising + 1] = now rising[#rising + 1] = id
      else ids[#ids + 1] = id end
    end
  end
  looked_at = looked_at + #found / 2
  if #found == 0 then break end
end
if #ids + #rising > 0 then open_for_writing() end
all('ZADD', DEAD, rising)
all('ZREM', DEAD, ids)
all('HDEL', MESSAGES, ids)
all('HDEL', HISTORY, ids)
all('HDEL', RECOVERED, ids)
return #ids
